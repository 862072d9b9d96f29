package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// postgres shows the database from both sides: as the servers see it, and what CloudNativePG reports about each instance
// (https://cloudnative-pg.io/documentation/current/monitoring/).
func postgres() *dashboard.DashboardBuilder {
	const here = `namespace="$namespace"`
	const primary = ` and on (pod) cnpg_pg_replication_in_recovery{` + here + `} == 0`
	board := newDashboard("myticket-postgres", "MyTicket / Postgres",
		"The database, as the servers see it and as CloudNativePG reports it. If database.mode is external, only the first row has data.")

	withRow(board, "As the servers see it",
		panel{
			id: 1, title: "Connections in use, share of the maximum", look: curves, unit: share, warn: .8, alarm: .95,
			about: "In each server's pool (database.connectionsPerServer).",
			queries: []query{{
				`max by (pod) (myticket_postgres_connections{` + here + `,state="in_use"} / on (pod) myticket_postgres_max_connections{` + here + `})`,
				"{{pod}}",
			}},
			alerts: []string{"MyticketPoolSaturated"},
		},
		panel{
			id: 2, title: "Waiting for a connection", look: curves, unit: count, warn: .5, alarm: 2,
			about: "How many requests for a connection wait, on average. If they wait, the pool is too small, or Postgres is too slow.",
			queries: []query{{
				`sum by (pod) (rate(myticket_postgres_wait_seconds_total{` + here + `}[$__rate_interval]))`, "{{pod}}",
			}},
			alerts: []string{"MyticketPoolSaturated"},
		},
		panel{
			id: 3, title: "New connections", look: curves, unit: perSecond,
			about:   "Each costs Postgres a process. Many mean that connections break, or that the pool grows and shrinks.",
			queries: []query{{`sum by (pod) (rate(myticket_postgres_connections_opened_total{` + here + `}[$__rate_interval]))`, "{{pod}}"}},
		},
		panel{
			id: 4, title: "Time of a commit", look: curves, unit: seconds, warn: .5, alarm: 2, wide: 12,
			about:   "How long Postgres takes to commit a batch of tickets, standbys included.",
			queries: quantiles("myticket_intake_commit_seconds", .5, .95, .99),
		},
		panel{
			id: 5, title: "Schema", look: curves, unit: count, wide: 12,
			about: "The version of the database's schema, and the version that each server needs. A newer schema is fine.",
			queries: []query{
				{`max(myticket_schema_version{` + here + `})`, "current"},
				{`max by (pod) (myticket_schema_needed_version{` + here + `})`, "needed by {{pod}}"},
			},
			alerts: []string{"MyticketSchemaBehind"},
		},
	)
	withRow(board, "Instances",
		panel{
			id: 10, title: "Instances that are up", look: value, unit: count, warn: 2, alarm: 1,
			about:   "Instances on which Postgres answers.",
			queries: []query{{`sum(cnpg_collector_up{` + here + `})`, "instances"}},
			alerts:  []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 11, title: "Primary", look: sheet, unit: count, wide: 6,
			about:   "The instance that takes the tickets.",
			queries: []query{{`max by (pod) (cnpg_pg_replication_in_recovery{` + here + `} == 0)`, "in recovery"}},
		},
		panel{
			id: 12, title: "Standbys that stream", look: value, unit: count, warn: 2, alarm: 1,
			about: "Standbys that receive the write-ahead log from the primary. With `dataDurability: required` a commit waits for one.",
			queries: []query{{
				`max(cnpg_pg_replication_streaming_replicas{` + here + `}` + primary + `)`, "standbys",
			}},
			alerts: []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 13, title: "Missing synchronous standbys", look: value, unit: count, alarm: 1,
			about: "If not 0, commits wait until a standby is back, and tickets go to the spool.",
			queries: []query{{ // "observed" is the number that Postgres is told to wait for, and not the number that is there
				`clamp_min(max(cnpg_collector_sync_replicas{` + here + `,value="expected"} - ignoring (value) ` +
					`cnpg_pg_replication_streaming_replicas{` + here + `}` + primary + `), 0)`, "missing",
			}},
			alerts: []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 14, title: "Newest backup", look: value, unit: unixTime,
			about: "When the barman-cloud plugin made the newest backup that can be restored. Empty if there is none.",
			queries: []query{{
				`max(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{` + here + `}) * 1000`, "backup",
			}},
			alerts: []string{"MyticketBackupFailed"},
		},
	)
	withRow(board, "Load",
		panel{
			id: 20, title: "Transactions", look: curves, unit: perSecond,
			about: "Of the database with the most transactions, by instance. Rollbacks are batches that were refused or given up.",
			queries: []query{
				{`max by (pod) (rate(cnpg_pg_stat_database_xact_commit{` + here + `}[$__rate_interval]))`, "commits, {{pod}}"},
				{`max by (pod) (rate(cnpg_pg_stat_database_xact_rollback{` + here + `}[$__rate_interval]))`, "rollbacks, {{pod}}"},
			},
		},
		panel{
			id: 21, title: "Connections, share of max_connections", look: curves, unit: share, warn: .8, alarm: .95,
			about: "By instance. The chart checks that servers × connectionsPerServer + reservedConnections do not exceed max_connections.",
			queries: []query{{
				`sum by (pod) (cnpg_backends_total{` + here + `}) / on (pod) max by (pod) (cnpg_pg_settings_setting{` + here + `,name="max_connections"})`,
				"{{pod}}",
			}},
		},
		panel{
			id: 22, title: "Waits for a lock, and the longest transaction", look: curves, unit: count,
			about: "Connections that wait for a lock, and the duration of the longest transaction in seconds. A batch takes milliseconds.",
			queries: []query{
				{`max by (pod) (cnpg_backends_waiting_total{` + here + `})`, "waiting, {{pod}}"},
				{`max by (pod) (cnpg_backends_max_tx_duration_seconds{` + here + `})`, "longest (s), {{pod}}"},
			},
		},
		panel{
			id: 23, title: "Write-ahead log", look: curves, unit: bytes,
			about: "Size on each instance's disk. It grows while it cannot be archived, or while a standby is away.",
			queries: []query{{
				`max by (pod) (cnpg_collector_pg_wal{` + here + `,value="size"})`, "{{pod}}",
			}},
			alerts: []string{"MyticketArchivingFailed", "MyticketVolumeFilling"},
		},
		panel{
			id: 24, title: "Checkpoints", look: curves, unit: perSecond,
			about: "requested: the write-ahead log reached its maximum size before checkpoint_timeout; raise max_wal_size.",
			queries: []query{
				{`sum by (pod) (rate(cnpg_pg_stat_checkpointer_checkpoints_timed{` + here + `}[$__rate_interval]))`, "timed, {{pod}}"},
				{`sum by (pod) (rate(cnpg_pg_stat_checkpointer_checkpoints_req{` + here + `}[$__rate_interval]))`, "requested, {{pod}}"},
			},
		},
		panel{
			id: 25, title: "Rows", look: stacked, unit: perSecond,
			about: "Rows that are inserted, updated and deleted on the primary. Normally tickets are only inserted.",
			queries: []query{
				{`sum(rate(cnpg_pg_stat_database_tup_inserted{` + here + `}[$__rate_interval]))`, "inserted"},
				{`sum(rate(cnpg_pg_stat_database_tup_updated{` + here + `}[$__rate_interval]))`, "updated"},
				{`sum(rate(cnpg_pg_stat_database_tup_deleted{` + here + `}[$__rate_interval]))`, "deleted"},
			},
		},
	)
	withRow(board, "Safety",
		panel{
			id: 30, title: "Replication lag", look: curves, unit: seconds, warn: 10, alarm: 60,
			about:   "Age in seconds of the newest transaction that the standby has replayed, while there is load.",
			queries: []query{{`max by (pod) (cnpg_pg_replication_lag{` + here + `})`, "{{pod}}"}},
			alerts:  []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 31, title: "Archive of the write-ahead log", look: curves, unit: perSecond,
			about: "Archived segments, failed attempts, and segments that wait. Only if backups are enabled.",
			queries: []query{
				{`sum(rate(cnpg_pg_stat_archiver_archived_count{` + here + `}[$__rate_interval]))`, "archived"},
				{`sum(rate(cnpg_pg_stat_archiver_failed_count{` + here + `}[$__rate_interval]))`, "failed"},
				{`max(cnpg_collector_pg_wal_archive_status{` + here + `,value="ready"})`, "waiting (count)"},
			},
			alerts: []string{"MyticketArchivingFailed"},
		},
		panel{
			id: 32, title: "Fill level of the volumes", look: curves, unit: share, warn: .7, alarm: .85,
			about: "Every volume of the namespace, spools included, as the kubelet reports it.",
			queries: []query{{
				`max by (persistentvolumeclaim) (1 - kubelet_volume_stats_available_bytes{` + here + `} / kubelet_volume_stats_capacity_bytes{` + here + `})`,
				"{{persistentvolumeclaim}}",
			}},
			alerts: []string{"MyticketVolumeFilling"},
		},
		panel{
			id: 33, title: "Size of the databases", look: curves, unit: bytes, wide: 12,
			about:   "On the primary. docs/operations.md says how many bytes a ticket takes.",
			queries: []query{{`max by (datname) (cnpg_pg_database_size_bytes{` + here + `})`, "{{datname}}"}},
		},
		panel{
			id: 34, title: "Age of transaction ids", look: curves, unit: count, wide: 12, warn: 500_000_000, alarm: 1_000_000_000,
			about:   "Vacuum keeps it low. At 2 billion Postgres takes no more tickets.",
			queries: []query{{`max by (datname) (cnpg_pg_database_xid_age{` + here + `})`, "{{datname}}"}},
		},
	)
	return board
}
