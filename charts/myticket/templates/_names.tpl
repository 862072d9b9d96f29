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

{{/* Labels by which pods are selected. They never change. */}}
{{- define "myticket.selector" -}}
app.kubernetes.io/name: {{ .context.Chart.Name }}
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "myticket.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- include "myticket.withDigest" (list (printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion)) .Values.image.digest) -}}
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
