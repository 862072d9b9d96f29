{{/*
Rules of Prometheus, as prometheusrule.yaml makes them: `panel` becomes the link to a panel of a dashboard (dashboard/panel),
and each alert has the runbook docs/runbooks/NAME.md. Objectives are judged by how fast the error budget of 30 days burns
(https://sre.google/workbook/alerting-on-slos/, table 5-8). charts/testdata/alerts.yaml has what each is silent on, and fires on.
*/}}
{{- define "myticket.rules" -}}
{{- $namespace := printf "namespace=%q" .Release.Namespace }}
{{- $name := include "myticket.fullname" . }}
{{- $server := printf "%s,pod=~\"%s-[0-9]+\"" $namespace $name }}
{{- $cluster := include "myticket.clusterName" . }}
{{- $instance := printf "%s,pod=~\"%s-[0-9]+\"" $namespace $cluster }}
{{- $all := printf "myticket_http_request_duration_seconds_count{%s}" $server }}
{{- $failed := printf "myticket_http_request_duration_seconds_count{%s,code=~\"5..\"}" $server }}
{{- $answered := printf "myticket_http_request_duration_seconds_count{%s,code=~\"2..\"}" $server }}
{{- $inTime := printf "myticket_http_request_duration_seconds_bucket{%s,code=~\"2..\",le=\"0.5\"}" $server }}
{{- $read := printf "myticket_http_requests_total{%s,outcome=~\"treated|error\"}" $server }}
{{- $unreadable := printf "myticket_http_requests_total{%s,outcome=\"error\"}" $server }}
groups:
  - name: {{ $name }}.recorded
    rules:
      {{- range list "5m" "30m" "1h" "2h" "6h" "1d" "3d" }}
      - record: myticket:webhook_failed:ratio_rate{{ . }}
        expr: |-
          (sum by (namespace) (rate({{ $failed }}[{{ . }}])) or 0 * sum by (namespace) (rate({{ $all }}[{{ . }}])))
            / (sum by (namespace) (rate({{ $all }}[{{ . }}])) > 0)
      - record: myticket:webhook_slow:ratio_rate{{ . }}
        expr: |-
          1 - sum by (namespace) (rate({{ $inTime }}[{{ . }}])) / (sum by (namespace) (rate({{ $answered }}[{{ . }}])) > 0)
      {{- end }}
      {{- range list "15m" "1d" }}
      - record: myticket:source_unreadable:ratio_rate{{ . }}
        expr: |-
          sum by (namespace, source) (rate({{ $unreadable }}[{{ . }}])) / (sum by (namespace, source) (rate({{ $read }}[{{ . }}])) > 0)
      {{- end }}
      - record: myticket:source_tickets:increase1h
        expr: sum by (namespace, source) (increase(myticket_http_requests_total{ {{- $server }},outcome=~"treated|error|to_treat|spooled"}[1h]))
      - record: myticket:spool_fill:ratio
        expr: |-
          max by (namespace, pod) (
            myticket_spool_bytes{ {{- $server }}} / myticket_spool_max_bytes > myticket_spool_tickets / myticket_spool_max_tickets
            or myticket_spool_tickets{ {{- $server }}} / myticket_spool_max_tickets
          )

  - name: {{ $name }}.webhook
    rules:
      {{- range $alert := list
        (dict "name" "MyticketAvailability" "record" "myticket:webhook_failed" "objective" .Values.monitoring.objectives.availability "panel" "myticket-service/11"
              "what" "is answered 5xx, so its sender has to send it again; what it does not, is lost")
        (dict "name" "MyticketLatency" "record" "myticket:webhook_slow" "objective" .Values.monitoring.objectives.latency "panel" "myticket-service/12"
              "what" "is answered later than after 0.5 s; tills that give up before an answer may send it again, or not") }}
      {{- $budget := printf "(1 - %v / 100)" .objective }}
      - alert: {{ .name }}
        expr: |-
          {{ .record }}:ratio_rate1h > 14.4 * {{ $budget }} and {{ .record }}:ratio_rate5m > 14.4 * {{ $budget }}
            or {{ .record }}:ratio_rate6h > 6 * {{ $budget }} and {{ .record }}:ratio_rate30m > 6 * {{ $budget }}
        labels: {severity: critical}
        panel: {{ .panel }}
        annotations:
          summary: The webhook uses up its error budget of 30 days within five days, or faster
          description: {{ printf "%q" (print "{{ $value | humanizePercentage }} of the tickets " .what ". The objective is " .objective " %.") }}
      - alert: {{ .name }}
        expr: |-
          {{ .record }}:ratio_rate1d > 3 * {{ $budget }} and {{ .record }}:ratio_rate2h > 3 * {{ $budget }}
            or {{ .record }}:ratio_rate3d > {{ $budget }} and {{ .record }}:ratio_rate6h > {{ $budget }}
        labels: {severity: warning}
        panel: {{ .panel }}
        annotations:
          summary: The webhook uses up its error budget within the 30 days that it is for
          description: {{ printf "%q" (print "{{ $value | humanizePercentage }} of the tickets " .what ". The objective is " .objective " %.") }}
      {{- end }}
      - alert: MyticketDown
        expr: absent(myticket_build_info{ {{- $server }}})
        for: 2m
        labels: {severity: critical}
        panel: myticket-service/3
        annotations:
          summary: Prometheus reaches no server
          description: No ticket can be posted, unless only Prometheus cannot reach the servers. Senders see an error of the Ingress.
      - alert: MyticketServerDown
        expr: |-
          up{ {{- $server }}} == 0
            or kube_statefulset_status_replicas_ready{ {{- $namespace }},statefulset={{ $name | quote }}}
              < kube_statefulset_replicas{ {{- $namespace }},statefulset={{ $name | quote }}}
        for: 10m
        labels: {severity: warning}
        panel: myticket-service/52
        annotations:
          summary: A server is down, or not ready
          description: The others take its tickets. Those in its spool are safe on its volume, and not read until it is back.
      - alert: MyticketConnectionsRefused
        expr: sum by (namespace, pod) (increase(myticket_http_connections_refused_total{ {{- $server }}}[5m])) > 0
        labels: {severity: critical}
        panel: myticket-service/21
        annotations:
          summary: {{ "{{ $labels.pod }} refuses connections" | quote }}
          description: As many connections are open as may be (--max-connections), each with a request under way. Others are answered 503 before their ticket is read.
      - alert: MyticketSourceSilent
        expr: |-
          (myticket:source_tickets:increase1h offset 1w >= 10 or min_over_time(myticket:source_tickets:increase1h[1d] offset 1h) > 0)
            unless myticket:source_tickets:increase1h > 0
        for: 5m
        labels: {severity: warning}
        panel: myticket-tickets/10
        annotations:
          summary: {{ "No ticket from {{ $labels.source }} for an hour" | quote }}
          description: >-
            It sent in each hour of the last day, or at this time a week ago. Its tills may not reach the webhook, and keep tickets or lose them.

  - name: {{ $name }}.spool
    rules:
      - alert: MyticketDatabaseAway
        expr: max by (namespace, pod) (myticket_intake_database_away{ {{- $server }}}) == 1
        for: 1m
        labels: {severity: critical}
        panel: myticket-service/4
        annotations:
          summary: {{ "{{ $labels.pod }} cannot store in Postgres" | quote }}
          description: Tickets go to the spool and are answered 202. When it is full, they are refused with 503.
      - alert: MyticketSpoolFilling
        expr: |-
          myticket:spool_fill:ratio{ {{- $namespace }}} > 0.5
            or predict_linear(myticket:spool_fill:ratio{ {{- $namespace }}}[15m], 3600) > 1 and myticket:spool_fill:ratio > 0.1
        for: 1m
        labels: {severity: warning}
        panel: myticket-service/41
        annotations:
          summary: {{ "The spool of {{ $labels.pod }} is full to {{ $value | humanizePercentage }}, or will be full within an hour" | quote }}
          description: Tickets in it are safe. When it is full, and Postgres still does not take them, tickets are refused with 503.
      - alert: MyticketSpoolFilling
        expr: myticket:spool_fill:ratio{ {{- $namespace }}} > 0.8
        for: 1m
        labels: {severity: critical}
        panel: myticket-service/41
        annotations:
          summary: {{ "The spool of {{ $labels.pod }} is full to {{ $value | humanizePercentage }}" | quote }}
          description: Tickets in it are safe. When it is full, and Postgres still does not take them, tickets are refused with 503.
      - alert: MyticketSpoolAgeing
        expr: max by (namespace, pod) (myticket_spool_oldest_age_seconds{ {{- $server }}}) > 1800
        for: 5m
        labels: {severity: warning}
        panel: myticket-service/42
        annotations:
          summary: {{ "Tickets wait in the spool of {{ $labels.pod }} for {{ $value | humanizeDuration }}" | quote }}
          description: They are safe, but orders and products lack what they say.
      - alert: MyticketSpoolDrainStuck
        expr: |-
          max by (namespace, pod) (min_over_time(myticket_spool_tickets{ {{- $server }}}[10m])) > 0
            and max by (namespace, pod) (max_over_time(myticket_intake_database_away{ {{- $server }}}[10m])) == 0
            and sum by (namespace, pod) (increase(myticket_spool_drained_total{ {{- $server }}}[10m])) == 0
        for: 5m
        labels: {severity: warning}
        panel: myticket-service/43
        annotations:
          summary: {{ "{{ $labels.pod }} brings nothing from its spool into Postgres, though that takes tickets" | quote }}
          description: The tickets in it are safe, and are not read. The log says why.
      - alert: MyticketSpoolFailing
        expr: max by (namespace, pod) (myticket_spool_failing{ {{- $server }}}) == 1
        for: 1m
        labels: {severity: critical}
        panel: myticket-service/45
        annotations:
          summary: {{ "The spool of {{ $labels.pod }} takes no tickets" | quote }}
          description: It is full, or its disk fails. If Postgres is away too, tickets are refused with 503. What is in it is kept.
      - alert: MyticketSpoolFilesAside
        expr: max by (namespace, pod) (myticket_spool_files_aside{ {{- $server }}}) > 0
        labels: {severity: critical}
        panel: myticket-service/45
        annotations:
          summary: {{ "{{ $value }} file(s) of the spool of {{ $labels.pod }} were set aside" | quote }}
          description: A file is damaged, so that tickets that were acknowledged may be lost, or Postgres takes a ticket in no form.

  - name: {{ $name }}.reading
    rules:
      - alert: MyticketErrorJump
        expr: |-
          (myticket:source_unreadable:ratio_rate15m{ {{- $namespace }}} > 0.01
              and sum by (namespace, source) (increase({{ $unreadable }}[15m])) >= 10)
            unless myticket:source_unreadable:ratio_rate15m <= 5 * myticket:source_unreadable:ratio_rate1d
        for: 5m
        labels: {severity: warning}
        panel: myticket-tickets/20
        annotations:
          summary: {{ "{{ $value | humanizePercentage }} of the tickets of {{ $labels.source }} cannot be read" | quote }}
          description: That is more than five times what it was over a day. They are stored, but not in orders and products; mostly a till has a new format.
      - alert: MyticketNewProductsLimited
        expr: sum by (namespace, source) (increase(myticket_new_products_limited_total{ {{- $server }}}[15m])) >= 1
        labels: {severity: warning}
        panel: myticket-tickets/25
        annotations:
          summary: {{ "{{ $labels.source }} adds products faster than it may" | quote }}
          description: Tickets that name new products become ERROR. They are stored, but not in orders and products, until somebody raises the limit and retries them.
      - alert: MyticketBacklog
        expr: |-
          max by (namespace) (myticket_backlog_overdue_seconds{ {{- $server }}}) > 300
            or max by (namespace) (myticket_backlog_tickets{ {{- $server }},status="TO_TREAT"}) > 10000
        for: 5m
        labels: {severity: warning}
        panel: myticket-service/50
        annotations:
          summary: Tickets that are TO_TREAT wait too long, or are too many
          description: They are stored, but nobody reads them, so they are not in orders and products.
      - alert: MyticketMaintenanceFailing
        expr: |-
          sum by (namespace) (increase(myticket_maintenance_failures_total{ {{- $server }},task=~"partitions|strays"}[15m])) > 10
            or max by (namespace) (min_over_time(myticket_strays{ {{- $server }}}[1h])) > 0
        for: 5m
        labels: {severity: warning}
        panel: myticket-service/53
        annotations:
          summary: Partitions of tickets are not made, or tickets of a full default partition are not moved
          description: No ticket is lost. Those that wait to be moved are found by no query, and are not treated.

  - name: {{ $name }}.database
    rules:
      - alert: MyticketPoolSaturated
        expr: |-
          sum by (namespace, pod) (rate(myticket_postgres_wait_seconds_total{ {{- $server }}}[5m])) > 0.5
            or max by (namespace, pod) (min_over_time(myticket_postgres_connections{ {{- $server }},state="in_use"}[10m]))
              >= max by (namespace, pod) (myticket_postgres_max_connections{ {{- $server }}})
        for: 10m
        labels: {severity: warning}
        panel: myticket-postgres/2
        annotations:
          summary: {{ "{{ $labels.pod }} waits for connections to Postgres" | quote }}
          description: Tickets are answered later, and then go to the spool.
      - alert: MyticketSchemaBehind
        expr: |-
          max by (namespace, pod) (myticket_schema_needed_version{ {{- $server }}} > myticket_schema_version)
            or max by (namespace, pod) (myticket_schema_dirty{ {{- $server }}}) == 1
        for: 5m
        labels: {severity: critical}
        panel: myticket-postgres/5
        annotations:
          summary: The database's schema is older than servers need, or half migrated
          description: Servers that need a newer one are not ready, and spool the tickets that reach them.
      {{- if ne .Values.database.mode "external" }}
      {{- $primary := printf "on (namespace, pod) cnpg_pg_replication_in_recovery{%s} == 0" $instance }}
      {{- if .Values.database.cluster.synchronous.enabled }}
      - alert: MyticketStandbyMissing
        expr: |-
          max by (namespace) (cnpg_pg_replication_streaming_replicas{ {{- $instance }}} and {{ $primary }})
            < {{ int .Values.database.cluster.synchronous.number }}
        for: 2m
        labels: {severity: critical}
        panel: myticket-postgres/13
        annotations:
          summary: Postgres lacks synchronous standbys
          description: >-
            {{ if eq .Values.database.cluster.synchronous.dataDurability "required" }}Commits wait for one, so tickets go to the spool.
            {{- else }}Tickets are committed on the primary alone, and are lost if it is lost now.{{ end }}
      {{- end }}
      {{- if gt (int .Values.database.cluster.instances) 1 }}
      - alert: MyticketStandbyMissing
        expr: |-
          max by (namespace) (cnpg_pg_replication_streaming_replicas{ {{- $instance }}} and {{ $primary }})
            < {{ sub (int .Values.database.cluster.instances) 1 }}
        for: 15m
        labels: {severity: warning}
        panel: myticket-postgres/12
        annotations:
          summary: A standby of Postgres does not follow
          description: Tickets are stored as usual, but the next instance that fails may be one too many.
      {{- end }}
      - alert: MyticketVolumeFilling
        expr: |-
          kubelet_volume_stats_available_bytes{ {{- $namespace }},persistentvolumeclaim=~"{{ $cluster }}-[0-9]+(-wal)?|spool-{{ $name }}-[0-9]+"}
            / kubelet_volume_stats_capacity_bytes < 0.15
        for: 5m
        labels: {severity: warning}
        panel: myticket-postgres/32
        annotations:
          summary: {{ "The volume {{ $labels.persistentvolumeclaim }} has {{ $value | humanizePercentage }} left" | quote }}
          description: A full volume of Postgres stops it, and tickets go to the spool.
      {{- if .Values.database.cluster.backup.enabled }}
      - alert: MyticketArchivingFailed
        expr: |-
          max by (namespace) (cnpg_collector_pg_wal_archive_status{ {{- $instance }},value="ready"} and {{ $primary }}) > 10
            or max by (namespace) (cnpg_pg_stat_archiver_last_failed_time{ {{- $instance }}} > cnpg_pg_stat_archiver_last_archived_time and {{ $primary }}) > 0
        for: 15m
        labels: {severity: critical}
        panel: myticket-postgres/31
        annotations:
          summary: The write-ahead log is not archived
          description: Tickets are stored, but a restore would lack them, and the log fills the disk until Postgres stops.
      - alert: MyticketBackupFailed
        expr: |-
          max by (namespace) (barman_cloud_cloudnative_pg_io_last_failed_backup_timestamp{ {{- $instance }}})
              > max by (namespace) (barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{ {{- $instance }}})
            or absent(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{ {{- $instance }}})
        for: 1h
        labels: {severity: warning}
        panel: myticket-postgres/14
        annotations:
          summary: The newest backup of the database failed, or there is no news of any
          description: A restore starts from an older one, and takes longer; without any there is none.
      {{- end }}
      {{- end }}
{{- end }}
