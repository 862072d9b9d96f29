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

{{/* A container of our image, as far as all are the same. */}}
{{- define "myticket.containerBasics" -}}
image: {{ include "myticket.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* How a container finds the database. pgx reads libpq's variables; what the URI says wins. */}}
{{- define "myticket.databaseEnv" -}}
- name: DATABASE_URL_FILE
  value: /etc/myticket/database/uri
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

{{/*
Not empty where every connection comes from an ingress controller, so that a limit of each peer's would be one of all senders. With
MYTICKET_PEER_HEADER the server knows who is behind it, and the limit holds again.
*/}}
{{- define "myticket.peersAreProxies" -}}
{{- $s := .Values.settings -}}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled) (not (hasKey $s "MYTICKET_PEER_HEADER")) (not (hasKey $s "MYTICKET_MAX_CONNECTIONS_PER_PEER")) }}true{{ end -}}
{{- end }}

{{/* What Go may use of a container's memory limit, so that it collects garbage before the kernel kills it. */}}
{{- define "myticket.memoryEnv" -}}
{{- with dig "limits" "memory" "" .Values.resources }}
- name: GOMEMLIMIT # 90 % of the limit
  value: {{ div (mul (include "myticket.bytes" (dict "value" . "name" "resources.limits.memory") | int64) 9) 10 | quote }}
{{- end }}
{{- end }}

{{- define "myticket.databaseMount" -}}
- name: database
  mountPath: /etc/myticket/database
  readOnly: true
{{- end }}

{{/* Secrets that CloudNativePG makes, or yours. Files follow a renewed CA or password, where variables would not. */}}
{{- define "myticket.databaseVolume" -}}
- name: database
  projected:
    defaultMode: 0440
    sources:
      {{- if eq .Values.database.mode "external" }}
      - secret:
          name: {{ .Values.database.external.secretName | quote }}
          items: [{key: {{ .Values.database.external.secretKey | quote }}, path: uri}]
      {{- with .Values.database.external.caSecretName }}
      - secret:
          name: {{ . | quote }}
          items: [{key: {{ $.Values.database.external.caSecretKey | quote }}, path: ca.crt}]
      {{- end }}
      {{- else }}
      - secret:
          name: {{ include "myticket.clusterName" . }}-app
          items: [{key: uri, path: uri}]
      - secret:
          name: {{ include "myticket.clusterName" . }}-ca
          items: [{key: ca.crt, path: ca.crt}]
      {{- end }}
{{- end }}

{{/* The Job that migrates: its spec, for the hook and for mode inline. */}}
{{- define "myticket.migrateJobSpec" -}}
# One attempt: it waits for the database by itself, and a second attempt would hide the reason behind "dirty".
backoffLimit: 0
podFailurePolicy:
  rules:
    - action: Ignore # a drained node is no failed migration
      onPodConditions: [{type: DisruptionTarget}]
activeDeadlineSeconds: {{ .Values.migrations.deadlineSeconds | int }}
{{- if ne .Values.database.mode "inline" }}
ttlSecondsAfterFinished: {{ .Values.migrations.keepLogsSeconds | int }}
{{- end }}
template:
  metadata:
    labels: {{- include "myticket.podLabels" (dict "context" . "component" "migrate") | nindent 6 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "myticket.fullname" . }}-migrate
    automountServiceAccountToken: false
    {{- include "myticket.podBasics" . | nindent 4 }}
    containers:
      - name: migrate
        {{- include "myticket.containerBasics" . | nindent 8 }}
        args: [migrate, up, --wait, {{ printf "%ds" (sub (.Values.migrations.deadlineSeconds | int) 20) }}]
        env: {{- include "myticket.databaseEnv" . | nindent 10 }}
        resources: {{- toYaml .Values.migrations.resources | nindent 10 }}
        volumeMounts: {{- include "myticket.databaseMount" . | nindent 10 }}
    volumes: {{- include "myticket.databaseVolume" . | nindent 6 }}
{{- end }}
