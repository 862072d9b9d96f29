#!/bin/sh
# Runs the server, and restarts it when a live update has copied a new one and sent SIGHUP. It runs a copy, because the file of a
# running program cannot be written.
trap 'again=yes; kill -TERM "$server"' HUP
trap 'kill -TERM "$server"' TERM INT
while :; do
	again=
	cp /app/myticket /tmp/myticket
	/tmp/myticket "$@" &
	server=$!
	# A signal ends `wait`, but not the server.
	while kill -0 "$server" 2>/dev/null; do
		wait "$server"
		status=$?
	done
	if [ -z "$again" ]; then
		exit "$status"
	fi
done
