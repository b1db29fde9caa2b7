{{/*
The roles of a program, bound to its ServiceAccount. docs/rbac.md says why each
permission is there; scripts/check-chart compares. Takes "root", "component", and
YAML of rules: "rules" for the cluster, "ownRules" for the release's namespace.
*/}}
{{- define "bulkhead.rbac" -}}
# What the program makes is owned by this object, so that it goes with it.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "bulkhead.metadata" (merge (dict "cluster" true) .) | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
  # Whose object is it? Asked for the owner's UID.
  - apiGroups: [rbac.authorization.k8s.io]
    resources: [clusterroles]
    resourceNames: [bulkhead-{{ .component }}]
    verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "bulkhead.metadata" (merge (dict "cluster" true) .) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: bulkhead-{{ .component }}
subjects:
  {{- include "bulkhead.subject" . | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
rules:
  {{- .ownRules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: bulkhead-{{ .component }}
subjects:
  {{- include "bulkhead.subject" . | nindent 2 }}
{{- end }}

{{- define "bulkhead.subject" -}}
- kind: ServiceAccount
  name: bulkhead-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
{{- end }}
