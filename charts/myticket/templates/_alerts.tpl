{{/*
The rules of alerts.yaml that this release needs, with its names and values. alerts.yaml is made from charts/alerts by `make chart`.
*/}}
{{- define "myticket.rules" -}}
{{- $fullname := include "myticket.fullname" . }}
{{- $cluster := include "myticket.clusterName" . }}
{{- $monitoring := .Values.monitoring }}
{{- $database := .Values.database.cluster }}
{{- $series := printf "namespace=%q,pod=~\"%%s-[0-9]+\"" .Release.Namespace }}
{{- $values := dict
  "namespace" .Release.Namespace
  "fullname" $fullname
  "cluster" $cluster
  "servers" (printf $series $fullname)
  "instances" (printf $series $cluster)
  "events" (printf "namespace=%q,pod=~\"%s-events-.+\"" .Release.Namespace $fullname)
  "objectives.availability" $monitoring.objectives.availability
  "objectives.latency" $monitoring.objectives.latency
  "synchronous.number" (int $database.synchronous.number)
  "standbys" (sub (int $database.instances) 1)
  "runbookURL" $monitoring.runbookURL
  "grafanaURL" $monitoring.grafanaURL }}

{{- $hasCluster := ne .Values.database.mode "external" }}
{{- $synchronous := and $hasCluster $database.synchronous.enabled }}
{{- $required := eq $database.synchronous.dataDurability "required" }}
{{- $conditions := dict
  "cluster" $hasCluster
  "synchronous-required" (and $synchronous $required)
  "synchronous-preferred" (and $synchronous (not $required))
  "standbys" (and $hasCluster (gt (int $database.instances) 1))
  "backup" (and $hasCluster $database.backup.enabled)
  "events" .Values.events.enabled
  "archive" .Values.archive.enabled }}

{{- $text := .Files.Get "alerts.yaml" }}
{{- range $name, $value := $values }}
{{- $text = replace (printf "${%s}" $name) (toString $value) $text }}
{{- end }}

{{- $groups := list }}
{{- range (fromYaml $text).groups }}
{{- $rules := list }}
{{- range .rules }}
{{- if and .annotations (not $monitoring.grafanaURL) }}
{{- $_ := unset .annotations "dashboard_url" }}
{{- end }}
{{- if or (not .when) (get $conditions .when) }}
{{- $rules = append $rules (omit . "when") }}
{{- end }}
{{- end }}
{{- $groups = append $groups (dict "name" .name "rules" $rules) }}
{{- end }}
{{- dict "groups" $groups | toYaml }}
{{- end }}
