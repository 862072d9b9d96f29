package main

// onPrimary keeps only the series of the primary. ${instances} selects the series of the Cluster's instances.
const onPrimary = `on (namespace, pod) cnpg_pg_replication_in_recovery{${instances}} == 0`

func poolSaturated() alert {
	return alert{
		name:     "MyticketPoolSaturated",
		severity: warning,
		expr: lines(
			`sum by (namespace, pod) (rate(myticket_postgres_wait_seconds_total{${servers}}[5m])) > 0.5`,
			`  or max by (namespace, pod) (min_over_time(myticket_postgres_connections{${servers},state="in_use"}[10m]))`,
			`    >= max by (namespace, pod) (myticket_postgres_max_connections{${servers}})`,
		),
		lasts:       "10m",
		panel:       "myticket-postgres/2",
		summary:     "{{ $labels.pod }} waits for connections to Postgres",
		description: "Tickets are answered later. If they wait too long, they go to the spool.",
	}
}

func schemaBehind() alert {
	return alert{
		name:     "MyticketSchemaBehind",
		severity: critical,
		expr: lines(
			`max by (namespace, pod) (myticket_schema_needed_version{${servers}} > myticket_schema_version)`,
			`  or max by (namespace, pod) (myticket_schema_dirty{${servers}}) == 1`,
		),
		lasts:       "5m",
		panel:       "myticket-postgres/5",
		summary:     "The database's schema is older than the servers need, or a migration stopped halfway",
		description: "Servers that need a newer schema are not ready. Tickets that still reach them go to the spool.",
	}
}

// synchronousMissing is critical, because of what it means for tickets: that depends on the Cluster's dataDurability.
func synchronousMissing(dataDurability condition) alert {
	description := "Commits wait for a standby, so tickets go to the spool."
	if dataDurability == preferred {
		description = "Tickets are committed on the primary alone. If the primary is lost now, they are lost."
	}
	return alert{
		name:     "MyticketStandbyMissing",
		severity: critical,
		when:     dataDurability,
		expr: lines(
			`max by (namespace) (cnpg_pg_replication_streaming_replicas{${instances}} and `+onPrimary+`)`,
			`  < ${synchronous.number}`,
		),
		lasts:       "2m",
		panel:       "myticket-postgres/13",
		summary:     "Postgres has too few synchronous standbys",
		description: description,
	}
}

func standbyMissing() alert {
	return alert{
		name:     "MyticketStandbyMissing",
		severity: warning,
		when:     hasStandbys,
		expr: lines(
			`max by (namespace) (cnpg_pg_replication_streaming_replicas{${instances}} and `+onPrimary+`)`,
			`  < ${standbys}`,
		),
		lasts:       "15m",
		panel:       "myticket-postgres/12",
		summary:     "A standby of Postgres does not follow the primary",
		description: "Tickets are stored as usual. If one more instance fails, too few may be left.",
	}
}

func volumeFilling() alert {
	return alert{
		name:     "MyticketVolumeFilling",
		severity: warning,
		when:     hasCluster,
		expr: lines(
			`kubelet_volume_stats_available_bytes{namespace="${namespace}",persistentvolumeclaim=~"${cluster}-[0-9]+(-wal)?|spool-${fullname}-[0-9]+"}`,
			`  / kubelet_volume_stats_capacity_bytes < 0.15`,
		),
		lasts:       "5m",
		panel:       "myticket-postgres/32",
		summary:     "The volume {{ $labels.persistentvolumeclaim }} has {{ $value | humanizePercentage }} left",
		description: "Postgres stops when one of its volumes is full. Tickets then go to the spool.",
	}
}

func archivingFailed() alert {
	return alert{
		name:     "MyticketArchivingFailed",
		severity: critical,
		when:     archivesLogs,
		expr: lines(
			`max by (namespace) (cnpg_collector_pg_wal_archive_status{${instances},value="ready"} and `+onPrimary+`) > 10`,
			`  or max by (namespace) (cnpg_pg_stat_archiver_last_failed_time{${instances}} > cnpg_pg_stat_archiver_last_archived_time and `+onPrimary+`) > 0`,
		),
		lasts:       "15m",
		panel:       "myticket-postgres/31",
		summary:     "The write-ahead log is not archived",
		description: "Tickets are stored, but a restore would lack them. The log fills the disk, and Postgres stops when the disk is full.",
	}
}

func backupFailed() alert {
	return alert{
		name:     "MyticketBackupFailed",
		severity: warning,
		when:     archivesLogs,
		expr: lines(
			`max by (namespace) (barman_cloud_cloudnative_pg_io_last_failed_backup_timestamp{${instances}})`,
			`    > max by (namespace) (barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{${instances}})`,
			`  or absent(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{${instances}})`,
		),
		lasts:       "1h",
		panel:       "myticket-postgres/14",
		summary:     "The newest backup of the database failed, or there is no information about any backup",
		description: "A restore starts from an older backup, and takes longer. Without any backup a restore is not possible.",
	}
}
