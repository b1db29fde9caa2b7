{{/*
What templates share. Every helper takes a dict: "root" is the chart's context,
"component" one of webhook, ca, control, emergency, check.
*/}}

{{/* What pods are selected by; it can never change. */}}
{{- define "bulkhead.selectorLabels" -}}
app.kubernetes.io/name: bulkhead-{{ .component }}
app.kubernetes.io/part-of: bulkhead
{{- end }}

{{/* Labels of an object. Helm adds by itself that it manages them. */}}
{{- define "bulkhead.labels" -}}
{{ include "bulkhead.selectorLabels" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name, labels and annotations of an object in the release's namespace; "name" where it is not the component's, "cluster" where it has no namespace. */}}
{{- define "bulkhead.metadata" -}}
name: {{ .name | default (printf "bulkhead-%s" .component) }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "bulkhead.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge dict (.annotations | default dict) .root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The reference of an image; "image" is its key in .Values.images. */}}
{{- define "bulkhead.image" -}}
{{- $images := .root.Values.images }}
{{- $image := index $images .image }}
{{- $place := printf "%s/%s" ($image.registry | default $images.registry) $image.name }}
{{- if $image.digest -}}
{{ $place }}@{{ $image.digest }}
{{- else -}}
{{ $place }}:{{ $image.tag | default $images.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A duration such as 1h30m in milliseconds. */}}
{{- define "bulkhead.milliseconds" -}}
{{- $scale := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 }}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 }}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | atoi) (get $scale (regexFind "[a-z]+" .))) }}
{{- end }}
{{- $sum }}
{{- end }}

{{/* How many replicas a component has. */}}
{{- define "bulkhead.replicas" -}}
{{- $replicas := (index .root.Values .component).replicas }}
{{- if kindIs "invalid" $replicas -}}
{{ ternary 2 1 .root.Values.highAvailability }}
{{- else -}}
{{ $replicas }}
{{- end }}
{{- end }}

{{/* The Secrets that images are fetched with. */}}
{{- define "bulkhead.pullSecrets" -}}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
