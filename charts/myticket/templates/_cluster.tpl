{{/*
The CloudNativePG Cluster, and where it keeps backups. It never has a hook annotation: Helm would delete a hook, and the
database with it, at the next upgrade. (dict "context" $ "annotations" (dict …))
*/}}
{{- define "myticket.cluster" -}}
{{- $ := .context -}}
{{- $c := $.Values.database.cluster -}}
{{- if include "myticket.usesArchive" $ }}
apiVersion: barmancloud.cnpg.io/v1
kind: ObjectStore
metadata:
  name: {{ include "myticket.objectStoreName" $ }}
  namespace: {{ $.Release.Namespace }}
  labels: {{- include "myticket.podLabels" (dict "context" $ "component" "database") | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if $c.backup.enabled }}
  retentionPolicy: {{ $c.backup.retentionPolicy | quote }}
  {{- end }}
  configuration: {{- include "myticket.objectStoreConfiguration" $ | nindent 4 }}
---
{{- end }}
apiVersion: postgresql.cnpg.io/v1
kind: Cluster
metadata:
  name: {{ include "myticket.clusterName" $ }}
  namespace: {{ $.Release.Namespace }}
  labels: {{- include "myticket.podLabels" (dict "context" $ "component" "database") | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec: {{- mergeOverwrite (include "myticket.clusterSpec" $ | fromYaml) (deepCopy $c.extraSpec) | toYaml | nindent 2 }}
{{- end }}

{{/* Not empty if an archive is written (backup) or read (recovery). */}}
{{- define "myticket.usesArchive" -}}
{{- $c := .Values.database.cluster -}}
{{- if or $c.backup.enabled $c.recovery.from }}true{{ end -}}
{{- end }}

{{- define "myticket.objectStoreConfiguration" -}}
{{- $b := .Values.database.cluster.backup -}}
{{- $made := dict "destinationPath" $b.destinationPath "wal" (dict "compression" "gzip") "data" (dict "compression" "gzip") -}}
{{- with $b.endpointURL }}{{ $_ := set $made "endpointURL" . }}{{ end -}}
{{- with $b.secretName -}}
{{- $_ := set $made "s3Credentials" (dict
  "accessKeyId" (dict "name" . "key" "ACCESS_KEY_ID")
  "secretAccessKey" (dict "name" . "key" "ACCESS_SECRET_KEY")) -}}
{{- end -}}
{{- mergeOverwrite $made (deepCopy $b.configuration) | toYaml -}}
{{- end }}

{{- define "myticket.clusterSpec" -}}
{{- $c := .Values.database.cluster -}}
instances: {{ $c.instances | int }}
{{- with $c.image }}
imageName: {{ include "myticket.withDigest" (list (include "myticket.mirrored" (dict "context" $ "image" .)) $c.imageDigest) | quote }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $inherited := merge (dict) (deepCopy $c.inheritedMetadata) (ternary (dict "labels" .Values.commonLabels) (dict) (not (empty .Values.commonLabels))) }}
{{- with $inherited }}
inheritedMetadata: {{- toYaml . | nindent 2 }}
{{- end }}
primaryUpdateStrategy: unsupervised
{{- if gt ($c.instances | int) 1 }}
primaryUpdateMethod: switchover
{{- else }}
primaryUpdateMethod: restart
{{- end }}
switchoverDelay: {{ $c.switchoverDelay | int }}
smartShutdownTimeout: {{ $c.smartShutdownTimeout | int }}
{{- /* No secret here: without one, CloudNativePG makes the Secret with the whole URI. */}}
bootstrap:
  {{- if $c.recovery.from }}
  recovery:
    source: origin
    database: myticket
    owner: myticket
    {{- with $c.recovery.targetTime }}
    recoveryTarget: {targetTime: {{ . | quote }}}
    {{- end }}
  {{- else }}
  initdb:
    database: myticket
    owner: myticket
    encoding: UTF8
    dataChecksums: true
  {{- end }}
{{- if $c.recovery.from }}
externalClusters:
  - name: origin
    plugin:
      name: barman-cloud.cloudnative-pg.io
      parameters: {barmanObjectName: {{ include "myticket.objectStoreName" . }}, serverName: {{ $c.recovery.from | quote }}}
{{- end }}
postgresql:
  parameters: # texts, also where a value is a number
    {{- range $name, $value := $c.parameters }}
    {{- if not (kindIs "invalid" $value) }}
    {{ $name }}: {{ include "myticket.text" $value | quote }}
    {{- end }}
    {{- end }}
  {{- if $c.synchronous.enabled }}
  synchronous:
    method: any
    number: {{ $c.synchronous.number | int }}
    dataDurability: {{ $c.synchronous.dataDurability }}
    failoverQuorum: {{ $c.synchronous.failoverQuorum }}
  {{- end }}
storage: {{- include "myticket.storage" $c.storage | nindent 2 }}
{{- if $c.walStorage.enabled }}
walStorage: {{- include "myticket.storage" $c.walStorage | nindent 2 }}
{{- end }}
resources: {{- toYaml $c.resources | nindent 2 }}
affinity: {{- toYaml $c.affinity | nindent 2 }}
{{- if $c.backup.enabled }}
plugins:
  - name: barman-cloud.cloudnative-pg.io
    isWALArchiver: true
    parameters: {barmanObjectName: {{ include "myticket.objectStoreName" . }}}
{{- end }}
{{- end }}

{{- define "myticket.storage" -}}
size: {{ .size | quote }}
{{- with .storageClass }}
storageClass: {{ . | quote }}
{{- end }}
{{- end }}
