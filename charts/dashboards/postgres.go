package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// postgres shows the database, from both sides: what the servers see of it, and what CloudNativePG says of each instance
// (https://cloudnative-pg.io/documentation/current/monitoring/).
func postgres() *dashboard.DashboardBuilder {
	const here = `namespace="$namespace"`
	const primary = ` and on (pod) cnpg_pg_replication_in_recovery{` + here + `} == 0`
	board := newDashboard("myticket-postgres", "MyTicket / Postgres",
		"The database, as the servers see it and as CloudNativePG does. A database of another kind (database.mode=external) has only the first row.")

	withRow(board, "As the servers see it",
		panel{
			id: 1, title: "Connections in use, of those that may be", look: curves, unit: share, warn: .8, alarm: .95,
			about: "Of each server's pool (database.connectionsPerServer).",
			queries: []query{{
				`max by (pod) (myticket_postgres_connections{` + here + `,state="in_use"} / on (pod) myticket_postgres_max_connections{` + here + `})`,
				"{{pod}}",
			}},
			alerts: []string{"MyticketPoolSaturated"},
		},
		panel{
			id: 2, title: "Waiting for a connection", look: curves, unit: count, warn: .5, alarm: 2,
			about: "How many wait on average: seconds waited, a second. The pool is too small, or Postgres too slow.",
			queries: []query{{
				`sum by (pod) (rate(myticket_postgres_wait_seconds_total{` + here + `}[$__rate_interval]))`, "{{pod}}",
			}},
			alerts: []string{"MyticketPoolSaturated"},
		},
		panel{
			id: 3, title: "Connections that are made", look: curves, unit: perSecond,
			about:   "Each costs Postgres a process. Many mean that they break, or that the pool grows and shrinks.",
			queries: []query{{`sum by (pod) (rate(myticket_postgres_connections_opened_total{` + here + `}[$__rate_interval]))`, "{{pod}}"}},
		},
		panel{
			id: 4, title: "Time of a commit", look: curves, unit: seconds, warn: .5, alarm: 2, wide: 12,
			about:   "Of a batch of tickets, standbys included.",
			queries: quantiles("myticket_intake_commit_seconds", .5, .95, .99),
		},
		panel{
			id: 5, title: "Schema", look: curves, unit: count, wide: 12,
			about: "The version that is there, and the one that each server needs. A newer one is fine.",
			queries: []query{
				{`max(myticket_schema_version{` + here + `})`, "is"},
				{`max by (pod) (myticket_schema_needed_version{` + here + `})`, "needed by {{pod}}"},
			},
			alerts: []string{"MyticketSchemaBehind"},
		},
	)
	withRow(board, "Instances",
		panel{
			id: 10, title: "Instances that are up", look: value, unit: count, warn: 2, alarm: 1,
			about:   "Postgres answers there.",
			queries: []query{{`sum(cnpg_collector_up{` + here + `})`, "instances"}},
			alerts:  []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 11, title: "Primary", look: sheet, unit: count, wide: 6,
			about:   "The instance that takes tickets.",
			queries: []query{{`max by (pod) (cnpg_pg_replication_in_recovery{` + here + `} == 0)`, "in recovery"}},
		},
		panel{
			id: 12, title: "Standbys that stream", look: value, unit: count, warn: 2, alarm: 1,
			about: "Standbys that receive from the primary. With `dataDurability: required` a commit waits for one.",
			queries: []query{{
				`max(cnpg_pg_replication_streaming_replicas{` + here + `}` + primary + `)`, "standbys",
			}},
			alerts: []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 13, title: "Synchronous standbys that lack", look: value, unit: count, alarm: 1,
			about: "More than none: a commit waits until one is back, and tickets go to the spool.",
			queries: []query{{ // "observed" is how many Postgres is told to wait for, and not how many there are
				`clamp_min(max(cnpg_collector_sync_replicas{` + here + `,value="expected"} - ignoring (value) ` +
					`cnpg_pg_replication_streaming_replicas{` + here + `}` + primary + `), 0)`, "lack",
			}},
			alerts: []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 14, title: "Newest backup", look: value, unit: unixTime,
			about: "When the newest backup that can be restored was made, by the barman-cloud plugin. Nothing without one.",
			queries: []query{{
				`max(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{` + here + `}) * 1000`, "backup",
			}},
			alerts: []string{"MyticketBackupFailed"},
		},
	)
	withRow(board, "Load",
		panel{
			id: 20, title: "Transactions", look: curves, unit: perSecond,
			about: "Of the database with the most, by instance. Rollbacks are batches that were refused or given up.",
			queries: []query{
				{`max by (pod) (rate(cnpg_pg_stat_database_xact_commit{` + here + `}[$__rate_interval]))`, "commits, {{pod}}"},
				{`max by (pod) (rate(cnpg_pg_stat_database_xact_rollback{` + here + `}[$__rate_interval]))`, "rollbacks, {{pod}}"},
			},
		},
		panel{
			id: 21, title: "Connections, of max_connections", look: curves, unit: share, warn: .8, alarm: .95,
			about: "Of each instance. The chart counts servers × connectionsPerServer + reservedConnections against it.",
			queries: []query{{
				`sum by (pod) (cnpg_backends_total{` + here + `}) / on (pod) max by (pod) (cnpg_pg_settings_setting{` + here + `,name="max_connections"})`,
				"{{pod}}",
			}},
		},
		panel{
			id: 22, title: "Waiting for a lock, and the longest transaction", look: curves, unit: count,
			about: "Connections that wait for a lock, and seconds of the longest transaction. A batch takes milliseconds.",
			queries: []query{
				{`max by (pod) (cnpg_backends_waiting_total{` + here + `})`, "waiting, {{pod}}"},
				{`max by (pod) (cnpg_backends_max_tx_duration_seconds{` + here + `})`, "longest (s), {{pod}}"},
			},
		},
		panel{
			id: 23, title: "Write-ahead log", look: curves, unit: bytes,
			about: "Its size on each instance's disk. It grows while it cannot be archived, or while a standby is away.",
			queries: []query{{
				`max by (pod) (cnpg_collector_pg_wal{` + here + `,value="size"})`, "{{pod}}",
			}},
			alerts: []string{"MyticketArchivingFailed", "MyticketVolumeFilling"},
		},
		panel{
			id: 24, title: "Checkpoints", look: curves, unit: perSecond,
			about: "requested: the write-ahead log filled up before its time; raise max_wal_size.",
			queries: []query{
				{`sum by (pod) (rate(cnpg_pg_stat_checkpointer_checkpoints_timed{` + here + `}[$__rate_interval]))`, "timed, {{pod}}"},
				{`sum by (pod) (rate(cnpg_pg_stat_checkpointer_checkpoints_req{` + here + `}[$__rate_interval]))`, "requested, {{pod}}"},
			},
		},
		panel{
			id: 25, title: "Rows", look: stacked, unit: perSecond,
			about: "Rows that are inserted, updated and deleted, on the primary. Tickets are only inserted, in the normal case.",
			queries: []query{
				{`sum(rate(cnpg_pg_stat_database_tup_inserted{` + here + `}[$__rate_interval]))`, "inserted"},
				{`sum(rate(cnpg_pg_stat_database_tup_updated{` + here + `}[$__rate_interval]))`, "updated"},
				{`sum(rate(cnpg_pg_stat_database_tup_deleted{` + here + `}[$__rate_interval]))`, "deleted"},
			},
		},
	)
	withRow(board, "Safety",
		panel{
			id: 30, title: "How far standbys are behind", look: curves, unit: seconds, warn: 10, alarm: 60,
			about:   "Seconds that the newest that a standby has replayed is old, while there is load.",
			queries: []query{{`max by (pod) (cnpg_pg_replication_lag{` + here + `})`, "{{pod}}"}},
			alerts:  []string{"MyticketStandbyMissing"},
		},
		panel{
			id: 31, title: "Archive of the write-ahead log", look: curves, unit: perSecond,
			about: "Segments that were archived, and attempts that failed, where backups are on.",
			queries: []query{
				{`sum(rate(cnpg_pg_stat_archiver_archived_count{` + here + `}[$__rate_interval]))`, "archived"},
				{`sum(rate(cnpg_pg_stat_archiver_failed_count{` + here + `}[$__rate_interval]))`, "failed"},
				{`max(cnpg_collector_pg_wal_archive_status{` + here + `,value="ready"})`, "waiting (count)"},
			},
			alerts: []string{"MyticketArchivingFailed"},
		},
		panel{
			id: 32, title: "Volumes, full to", look: curves, unit: share, warn: .7, alarm: .85,
			about: "Every volume of the namespace, spools included, as kubelet says.",
			queries: []query{{
				`max by (persistentvolumeclaim) (1 - kubelet_volume_stats_available_bytes{` + here + `} / kubelet_volume_stats_capacity_bytes{` + here + `})`,
				"{{persistentvolumeclaim}}",
			}},
			alerts: []string{"MyticketVolumeFilling"},
		},
		panel{
			id: 33, title: "Size of the databases", look: curves, unit: bytes, wide: 12,
			about:   "On the primary. docs/operations.md has the bytes of a ticket.",
			queries: []query{{`max by (datname) (cnpg_pg_database_size_bytes{` + here + `})`, "{{datname}}"}},
		},
		panel{
			id: 34, title: "Age of transaction ids", look: curves, unit: count, wide: 12, warn: 500_000_000, alarm: 1_000_000_000,
			about:   "Vacuum keeps it small. At 2 billion Postgres stops taking tickets.",
			queries: []query{{`max by (datname) (cnpg_pg_database_xid_age{` + here + `})`, "{{datname}}"}},
		},
	)
	return board
}
