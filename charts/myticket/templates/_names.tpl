{{/* The name that all objects have or begin with. */}}
{{- define "myticket.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of an object: (dict "context" $ "component" "server"). */}}
{{- define "myticket.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
{{ include "myticket.podLabels" . }}
{{- end }}

{{/* Labels of a pod. They stay the same from one version to the next. */}}
{{- define "myticket.podLabels" -}}
{{ include "myticket.selector" . }}
{{- with .context.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of a pod that is not a server's. */}}
{{- define "myticket.jobLabels" -}}
{{ include "myticket.podLabels" . }}
{{- with .context.Values.jobs.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of the pods of Jobs: (dict "context" $ "component" "migrate"). */}}
{{- define "myticket.jobMetadata" -}}
labels: {{- include "myticket.jobLabels" . | nindent 2 }}
{{- with .context.Values.jobs.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels by which pods are selected. They never change. */}}
{{- define "myticket.selector" -}}
app.kubernetes.io/name: {{ .context.Chart.Name }}
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "myticket.image" -}}
{{- with .Values.image.registry | default .Values.global.imageRegistry }}{{ . }}/{{ end -}}
{{- $image := printf "%s:%s" (.Values.image.repository | default .Chart.Name) (.Values.image.tag | default .Chart.AppVersion) -}}
{{- include "myticket.withDigest" (list $image .Values.image.digest) -}}
{{- end }}

{{/* An image that is not ours, from the registry of all images, if there is one: (dict "context" $ "image" image). */}}
{{- define "myticket.mirrored" -}}
{{- with .context.Values.global.imageRegistry -}}
{{ . }}/{{ regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $.image "" }}
{{- else -}}
{{ .image }}
{{- end -}}
{{- end }}

{{/* An image and its digest, which may be empty: (list image digest). */}}
{{- define "myticket.withDigest" -}}
{{- first . }}{{ with last . }}@{{ . }}{{ end -}}
{{- end }}

{{- define "myticket.clusterName" -}}
{{- .Values.database.cluster.name | default (printf "%s-db" (include "myticket.fullname" .)) -}}
{{- end }}

{{- define "myticket.objectStoreName" -}}
{{- include "myticket.fullname" . }}-backups
{{- end }}

{{- define "myticket.serviceAccount" -}}
{{- .Values.serviceAccountName | default (include "myticket.fullname" .) -}}
{{- end }}

{{/* The account of migrations. A hook runs before the accounts of the release are made, so it has one of its own. */}}
{{- define "myticket.migrateServiceAccount" -}}
{{- .Values.serviceAccountName | default (printf "%s-migrate" (include "myticket.fullname" .)) -}}
{{- end }}

{{/* A value as text. Helm reads numbers from files as floats, whose own text may be 1e+06. */}}
{{- define "myticket.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{/*
The number of servers of the StatefulSet, which an autoscaler must be able to change. While one has not done so yet, Helm is the only
owner of the number: if the chart then left it out, Kubernetes would take 1. Helm without server-side apply takes 1 whenever the revision
before had a number. So the number stays that which is there.
*/}}
{{- define "myticket.replicas" -}}
{{- if not .Values.autoscaling.enabled -}}
{{- .Values.replicas | int -}}
{{- else -}}
{{- $live := include "myticket.liveScale" . | fromYaml -}}
{{- if and $live.replicas (not (and $live.serverSide $live.others)) -}}
{{- $live.replicas -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
What the cluster knows about the number of servers, as YAML: replicas (0 if there is no StatefulSet), serverSide (Helm uses server-side
apply), others (who set the number besides Helm: an autoscaler, or a person with kubectl scale).
https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management
*/}}
{{- define "myticket.liveScale" -}}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "myticket.fullname" .) -}}
{{- $others := list -}}
{{- $serverSide := false -}}
{{- range dig "metadata" "managedFields" list $found -}}
{{- $fields := dig "fieldsV1" "f:spec" dict . -}}
{{- $mine := and (eq .operation "Apply") (hasKey $fields "f:serviceName") -}}
{{- if $mine }}{{ $serverSide = true }}{{ end -}}
{{- if and (not $mine) (hasKey $fields "f:replicas") }}{{ $others = append $others .manager }}{{ end -}}
{{- end -}}
{{- dict "replicas" (dig "spec" "replicas" 0 $found | int) "serverSide" $serverSide "others" $others | toYaml -}}
{{- end }}

{{/* The maximum number of servers. */}}
{{- define "myticket.maxServers" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas | int }}{{ else }}{{ .Values.replicas | int }}{{ end -}}
{{- end }}

{{/* The minimum number of servers. */}}
{{- define "myticket.minServers" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.minReplicas | int }}{{ else }}{{ .Values.replicas | int }}{{ end -}}
{{- end }}

{{/* max_connections of the database. */}}
{{- define "myticket.maxConnections" -}}
{{- if eq .Values.database.mode "external" -}}
{{- .Values.database.external.maxConnections | int -}}
{{- else -}}
{{- .Values.database.cluster.parameters.max_connections | default 100 | int -}}
{{- end -}}
{{- end }}

{{/* A quantity such as 512Mi, in bytes: (dict "value" "512Mi" "name" "resources.limits.memory"). */}}
{{- define "myticket.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $value := toString .value -}}
{{- if not (regexMatch "^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$" $value) -}}
{{- fail (printf "%s is %q: write it as a whole number with k, M, G, T, Ki, Mi, Gi or Ti, as in 512Mi." .name $value) -}}
{{- end -}}
{{- mul (regexFind "^[0-9]+" $value | int64) (index $units (regexFind "[A-Za-z]*$" $value) | int64) -}}
{{- end }}
