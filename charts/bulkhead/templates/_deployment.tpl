{{/*
The Deployment of a program: all three are alike but for their environment, ports
and volumes. Takes "root" and "component", and further
  "ports"         the container's ports by name
  "monitoring"    the number of the port named monitoring
  "env"           YAML of a list, the program's environment
  "volumes", "volumeMounts"   YAML of lists, or nothing
  "grace"         seconds from SIGTERM to the end
*/}}
{{- define "bulkhead.deployment" -}}
{{- $values := .root.Values }}
{{- $own := index $values .component }}
{{- $hostNetwork := $own.hostNetwork | default false }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
spec:
  replicas: {{ include "bulkhead.replicas" . }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- if $hostNetwork }}
      # A new pod waits for its port until an old one has left the node.
      maxSurge: 0
      maxUnavailable: 1
      {{- else }}
      maxSurge: 1
      maxUnavailable: 0
      {{- end }}
  selector:
    matchLabels:
      {{- include "bulkhead.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "bulkhead.selectorLabels" . | nindent 8 }}
        {{- with $values.commonLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $own.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .component }}
        {{- with $own.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: bulkhead-{{ .component }}
      automountServiceAccountToken: true
      {{- with include "bulkhead.pullSecrets" . }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- if $hostNetwork }}
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      {{- end }}
      terminationGracePeriodSeconds: {{ .grace }}
      securityContext:
        runAsNonRoot: true
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: {{ .component }}
          image: {{ include "bulkhead.image" (dict "root" .root "image" .component) }}
          imagePullPolicy: {{ $values.images.pullPolicy }}
          env:
            {{- .env | nindent 12 }}
          ports:
            {{- range $name, $number := .ports }}
            - name: {{ $name }}
              containerPort: {{ $number }}
              protocol: TCP
            {{- end }}
          startupProbe:
            httpGet:
              path: /live
              port: monitoring
            periodSeconds: 1
            failureThreshold: 60
          readinessProbe:
            httpGet:
              path: /ready
              port: monitoring
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          livenessProbe:
            httpGet:
              path: /live
              port: monitoring
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          resources:
            {{- toYaml $own.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop:
                - ALL
          {{- with .volumeMounts }}
          volumeMounts:
            {{- . | nindent 12 }}
          {{- end }}
      {{- with .volumes }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
      {{- include "bulkhead.scheduling" . | nindent 6 }}
{{- end }}

{{/* Where pods of a component run. */}}
{{- define "bulkhead.scheduling" -}}
{{- $scheduling := .root.Values.scheduling -}}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $scheduling.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $scheduling.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $scheduling.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .root.Values.highAvailability }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    # A cluster with one node is better off with two replicas on it than with
    # one that waits for another node.
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys:
      - pod-template-hash
    labelSelector:
      matchLabels:
        {{- include "bulkhead.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A ServiceAccount, whose token no pod gets that does not ask for it. */}}
{{- define "bulkhead.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
automountServiceAccountToken: false
{{- end }}

{{/* The Service of a component; "service" maps its ports' numbers to the container's ports by name. */}}
{{- define "bulkhead.service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
spec:
  type: ClusterIP
  selector:
    {{- include "bulkhead.selectorLabels" . | nindent 4 }}
  ports:
    - name: {{ .portName }}
      port: {{ .port }}
      targetPort: {{ .portName }}
      protocol: TCP
    - name: monitoring
      port: 15014
      targetPort: monitoring
      protocol: TCP
{{- end }}

{{/* Of several replicas one at a time may be taken away; a single one can be, or its node could never be drained. */}}
{{- define "bulkhead.disruptionBudget" -}}
{{- if gt (include "bulkhead.replicas" . | int) 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "bulkhead.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  # A pod that is not ready serves nobody, and would block a drain for ever.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "bulkhead.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* An environment variable; nothing where the value is empty. */}}
{{- define "bulkhead.variable" -}}
{{- if ne (toString .value) "" }}
- name: {{ .name }}
  value: {{ toString .value | quote }}
{{- end }}
{{- end }}
