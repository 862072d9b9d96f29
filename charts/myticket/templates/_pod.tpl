{{/* What the pods of this chart have in common. */}}
{{- define "myticket.podBasics" -}}
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
How the pods of a component are spread over zones and nodes: (dict "context" $ "component" "server" "affinity" values).
Of several constraints that only ask (ScheduleAnyway), the scheduler heeds none on nodes that lack the label of one. Nodes often have no
zone. So spreading over nodes, if possible, is an anti-affinity, which counts by itself.
*/}}
{{- define "myticket.spread" -}}
{{- $how := .context.Values.topologySpread }}
{{- $pods := include "myticket.selector" . | fromYaml }}
{{- $spread := dict "topology.kubernetes.io/zone" $how.zone "kubernetes.io/hostname" $how.node }}
{{- $affinity := deepCopy (.affinity | default dict) }}
{{- if eq $how.node "ScheduleAnyway" }}
{{- $_ := unset $spread "kubernetes.io/hostname" }}
{{- $term := dict "weight" 100 "podAffinityTerm" (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $pods)) }}
{{- $affinity = merge $affinity (dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list $term))) }}
{{- end }}
{{- $constraints := list }}
{{- range $key, $when := $spread }}
{{- if $when }}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" $when "labelSelector" (dict "matchLabels" $pods)) }}
{{- end }}
{{- end }}
{{- with $affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $constraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the containers of our image have in common. */}}
{{- define "myticket.containerBasics" -}}
image: {{ include "myticket.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/*
How a container finds the database. pgx reads libpq's variables, but the URI takes precedence. Of CloudNativePG's Secret the parts are
mounted and not the URI: the operator sets a new password in Postgres as soon as it is in the Secret, and leaves the URI as it is.
*/}}
{{- define "myticket.databaseEnv" -}}
{{- if include "myticket.databaseURI" . }}
- name: DATABASE_URL_FILE
  value: /etc/myticket/database/uri
{{- else }}
- name: DATABASE_DIR
  value: /etc/myticket/database
{{- end }}
{{- if eq .Values.database.mode "external" }}
- name: PGSSLMODE
  value: {{ .Values.database.external.sslMode | quote }}
{{- if .Values.database.external.caSecretName }}
- name: PGSSLROOTCERT
  value: /etc/myticket/database/ca.crt
{{- end }}
{{- else }}
- name: PGSSLMODE
  value: verify-full
- name: PGSSLROOTCERT
  value: /etc/myticket/database/ca.crt
{{- end }}
{{- end }}

{{/* The settings of a server. What examines the settings has the same ones. */}}
{{- define "myticket.serverEnv" -}}
{{- $spoolBytes := include "myticket.bytes" (dict "value" .Values.spool.size "name" "spool.size") | int64 -}}
{{ include "myticket.databaseEnv" . }}
- name: MYTICKET_DATABASE_MAX_CONNS
  value: {{ .Values.database.connectionsPerServer | int | quote }}
- name: MYTICKET_SPOOL_DIR
  value: /var/lib/myticket/spool
- name: MYTICKET_SPOOL_MAX_BYTES
  value: {{ div (mul $spoolBytes 3) 4 | quote }}
- name: MYTICKET_SPOOL_MAX_TICKETS
  value: {{ .Values.spool.maxTickets | int64 | quote }}
- name: MYTICKET_SHUTDOWN_SPOOL_WAIT
  value: {{ .Values.shutdown.spoolSeconds | int }}s
- name: MYTICKET_SHUTDOWN_TIMEOUT
  value: {{ .Values.shutdown.timeoutSeconds | int }}s
{{- if .Values.sources.secretName }}
- name: MYTICKET_SOURCES_FILE
  value: /etc/myticket/sources/sources.json
{{- end }}
{{- include "myticket.testSourcesEnv" . | nindent 0 }}
{{- include "myticket.memoryEnv" (dict "resources" .Values.resources "name" "resources") | nindent 0 }}
{{- if include "myticket.peersAreProxies" . }}
- name: MYTICKET_MAX_CONNECTIONS_PER_PEER
  value: "0"
{{- end }}
{{- if .Values.tracing.endpoint }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .Values.tracing.protocol }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .Values.tracing.ratio | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .Release.Namespace }},k8s.statefulset.name={{ include "myticket.fullname" . }},k8s.pod.name=$(POD_NAME)
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: {{ $name }}
  value: {{ include "myticket.text" $value | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{- define "myticket.sourcesMount" -}}
{{- if .Values.sources.secretName }}
- {name: sources, mountPath: /etc/myticket/sources, readOnly: true}
{{- end }}
{{- end }}

{{- define "myticket.sourcesVolume" -}}
{{- with .Values.sources }}
{{- if .secretName }}
- name: sources
  secret:
    secretName: {{ .secretName | quote }}
    defaultMode: 0440
    items: [{key: {{ .secretKey | quote }}, path: sources.json}]
{{- end }}
{{- end }}
{{- end }}

{{/*
Not empty if every connection comes from an ingress controller. A limit per peer would then limit all senders together. With
MYTICKET_PEER_HEADER the server knows the address of the sender, and limits each sender again.
*/}}
{{- define "myticket.peersAreProxies" -}}
{{- $s := .Values.settings -}}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled) (not (hasKey $s "MYTICKET_PEER_HEADER")) (not (hasKey $s "MYTICKET_MAX_CONNECTIONS_PER_PEER")) }}true{{ end -}}
{{- end }}

{{/* Sources whose tickets teach no products. Everything that reads tickets for the product base must know them. */}}
{{- define "myticket.testSourcesEnv" -}}
- name: MYTICKET_TEST_SOURCES
  value: {{ prepend (.Values.test.otherSources | default list) .Values.test.source | join "," | quote }}
{{- end }}

{{/*
GOMEMLIMIT is 90 % of a container's memory limit, so that Go collects garbage before the kernel kills the process:
(dict "resources" .Values.resources "name" "resources").
*/}}
{{- define "myticket.memoryEnv" -}}
{{- with dig "limits" "memory" "" (.resources | default dict) }}
- name: GOMEMLIMIT
  value: {{ div (mul (include "myticket.bytes" (dict "value" . "name" (printf "%s.limits.memory" $.name)) | int64) 9) 10 | quote }}
{{- end }}
{{- end }}

{{/* Not empty if the Secret has the whole URI. */}}
{{- define "myticket.databaseURI" -}}
{{- if and (eq .Values.database.mode "external") (not .Values.database.external.secretKeys) }}true{{ end -}}
{{- end }}

{{- define "myticket.databaseMount" -}}
- name: database
  mountPath: /etc/myticket/database
  readOnly: true
{{- end }}

{{/* Secrets that CloudNativePG makes, or your own. They are files, because files follow a renewed CA or password and variables do not. */}}
{{- define "myticket.databaseVolume" -}}
- name: database
  projected:
    defaultMode: 0440
    sources:
      {{- if eq .Values.database.mode "external" }}
      - secret:
          name: {{ .Values.database.external.secretName | quote }}
          items:
            {{- if include "myticket.databaseURI" . }}
            - {key: {{ .Values.database.external.secretKey | quote }}, path: uri}
            {{- end }}
            {{- range $part, $key := .Values.database.external.secretKeys }}
            {{- if $key }}
            - {key: {{ $key | quote }}, path: {{ $part }}}
            {{- end }}
            {{- end }}
      {{- with .Values.database.external.caSecretName }}
      - secret:
          name: {{ . | quote }}
          items: [{key: {{ $.Values.database.external.caSecretKey | quote }}, path: ca.crt}]
      {{- end }}
      {{- else }}
      - secret:
          name: {{ include "myticket.clusterName" . }}-app
          items:
            {{- range list "host" "port" "dbname" "username" "password" }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      - secret:
          name: {{ include "myticket.clusterName" . }}-ca
          items: [{key: ca.crt, path: ca.crt}]
      {{- end }}
{{- end }}

{{/*
The spec of the Job that migrates, for the hook and for mode inline. It makes one attempt: it waits for the database by itself, and a
second attempt would only report "dirty" and hide the reason. The end of a pod on a drained node is not a failed migration.
*/}}
{{- define "myticket.migrateJobSpec" -}}
backoffLimit: 0
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget}]
activeDeadlineSeconds: {{ add (.Values.migrations.deadlineSeconds | int) 300 }} # the program gives up before, even after a slow pull; this would remove its log
{{- if ne .Values.database.mode "inline" }}
ttlSecondsAfterFinished: {{ .Values.migrations.keepLogsSeconds | int }}
{{- end }}
template:
  metadata: {{- include "myticket.jobMetadata" (dict "context" . "component" "migrate") | nindent 4 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "myticket.migrateServiceAccount" . }}
    automountServiceAccountToken: false
    {{- include "myticket.podBasics" . | nindent 4 }}
    containers:
      - name: migrate
        {{- include "myticket.containerBasics" . | nindent 8 }}
        args:
          - migrate
          - up
          - --wait={{ sub (.Values.migrations.deadlineSeconds | int) 20 }}s
          - --timeout={{ sub (.Values.migrations.deadlineSeconds | int) 10 }}s
        env: {{- include "myticket.databaseEnv" . | nindent 10 }}
        resources: {{- toYaml .Values.migrations.resources | nindent 10 }}
        volumeMounts: {{- include "myticket.databaseMount" . | nindent 10 }}
    volumes: {{- include "myticket.databaseVolume" . | nindent 6 }}
{{- end }}
