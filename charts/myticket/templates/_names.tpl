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

{{/* Metadata of the pods of Jobs: (dict "context" $ "component" "migrate"), perhaps with more "labels". */}}
{{- define "myticket.jobMetadata" -}}
labels:
  {{- include "myticket.podLabels" . | nindent 2 }}
  {{- with merge (dict) (.labels | default dict) (.context.Values.jobs.podLabels | default dict) }}{{ toYaml . | nindent 2 }}{{ end }}
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
{{- $image := printf "%s:%s" (.Values.image.repository | default .Chart.Name) (.Values.image.tag | default .Chart.AppVersion) -}}
{{- if .Values.image.registry -}}
{{- $image = printf "%s/%s" .Values.image.registry $image -}}
{{- else -}}
{{- $image = include "myticket.mirrored" (dict "context" . "image" $image) -}}
{{- end -}}
{{- include "myticket.withDigest" (list $image .Values.image.digest) -}}
{{- end }}

{{/* An image from the registry of all images, if there is one: (dict "context" $ "image" image). */}}
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
The number of servers of the StatefulSet; empty if an autoscaler alone decides. Where a revision had a number, and the next one has none,
Kubernetes takes 1: with server-side apply as long as nobody but Helm owns the number, otherwise always. So a release that ever had a number
keeps the one that is there. One that never had any never gets one, because a rollback to a revision without would take 1.
*/}}
{{- define "myticket.replicas" -}}
{{- if not .Values.autoscaling.enabled -}}
{{- .Values.replicas | int -}}
{{- else -}}
{{- $live := include "myticket.liveScale" . | fromYaml -}}
{{- $keeps := $live.serverSide | ternary (and $live.ours (not $live.others)) (or $live.ours $live.written) -}}
{{- if and $keeps $live.replicas }}{{ $live.replicas }}{{ end -}}
{{- end -}}
{{- end }}

{{/*
What the cluster knows about the number of servers, as YAML: replicas (0 if there are none), written (the revision before had a number, by an
annotation), ours (Helm owns the number), others (who else does: an autoscaler, or a person with kubectl scale), serverSide (Helm uses
server-side apply), manager (the name with which it does).
https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management
*/}}
{{- define "myticket.liveScale" -}}
{{- $fullname := include "myticket.fullname" . -}}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace $fullname -}}
{{- $is := dict "replicas" (dig "spec" "replicas" 0 $found | int) "others" list "ours" false "serverSide" false "manager" "" -}}
{{- $_ := set $is "written" (eq (dig "metadata" "annotations" "myticket/replicas" "" $found) "set") -}}
{{- range dig "metadata" "managedFields" list $found -}}
{{- $fields := dig "fieldsV1" "f:spec" dict . -}}
{{- $applies := and (eq .operation "Apply") (hasKey $fields "f:serviceName") -}}
{{- if $applies }}{{ $_ := set $is "serverSide" true }}{{ $_ := set $is "manager" .manager }}{{ end -}}
{{- if hasKey $fields "f:replicas" -}}
{{- if or $applies (eq .manager "helm") }}{{ $_ := set $is "ours" true }}{{ else }}{{ $_ := set $is "others" (append $is.others .manager) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if not $found -}}{{- /* deleted without its pods, to move spools: the autoscaler still knows the number */ -}}
{{- $scaler := lookup "autoscaling/v2" "HorizontalPodAutoscaler" .Release.Namespace $fullname -}}
{{- with dig "status" "desiredReplicas" 0 $scaler | int }}{{ $_ := set $is "replicas" . }}{{ $_ := set $is "written" true }}{{ end -}}
{{- end -}}
{{- toYaml $is -}}
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

{{/* The number of connections of the processes that send events. */}}
{{- define "myticket.eventsConnections" -}}
{{- if .Values.events.enabled }}{{ mul (.Values.events.replicas | int) (.Values.events.connectionsPerProcess | int) }}{{ else }}0{{ end -}}
{{- end }}

{{/* A time in days or weeks, such as 90d, in days. */}}
{{- define "myticket.days" -}}
{{- mul (regexFind "^[0-9]+" . | int) (hasSuffix "w" . | ternary 7 1) -}}
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

{{/* The paths that lead to the release, as a YAML list: those of some sources, or of all. */}}
{{- define "myticket.paths" -}}
{{- range . }}
- /ticket/{{ . }}
{{- else }}
- /ticket
{{- end }}
{{- end }}
