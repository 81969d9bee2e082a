#!/usr/bin/env bash
# A real, unmodified vantage6 HQ on 127.0.0.1, with a stand-in for Keycloak.
#
#   eval "$(hq.sh up WORKDIR [--hq-port N] [--auth-port N])"
#                         sets V6_HQ_URL, V6_AUTH_URL, KEYCLOAK_URL, KEYCLOAK_REALM,
#                         KEYCLOAK_ADMIN_USERNAME, KEYCLOAK_ADMIN_PASSWORD and V6_PYTHON
#                         (with vantage6-client, for seed.py and tests/user)
#   hq.sh stop WORKDIR    ends both, keeps ports and data: `up` goes on with them
#   hq.sh down WORKDIR    ends both and removes all that they left
#
# Ports are free ones unless chosen. HQ runs under uWSGI as in vantage6's own image,
# on SQLite. Environment: ACCESS_TTL, the seconds an access token lives (300);
# HQ_LOG_LEVEL (INFO).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

secret() { od -An -tx1 -N18 /dev/urandom | tr -d ' \n'; }
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&3 && grep -q '^HTTP/1.. 200' <&3) 2>/dev/null; }

up() {
	local dir=$work/hq hq_port='' auth_port='' python
	while [ $# -gt 0 ]; do
		case $1 in
			--hq-port) hq_port=$2 && shift 2 ;;
			--auth-port) auth_port=$2 && shift 2 ;;
			*) die "up: unknown option $1" ;;
		esac
	done
	python=$("$here/python.sh" hq)
	mkdir -p "$dir"/{data,auth}
	if ! [ -e "$dir/env" ]; then
		hq_port=${hq_port:-$(free_port)} auth_port=${auth_port:-$(free_port)}
		(
			umask 077
			cat >"$dir/env.part" <<-END
				export KEYCLOAK_URL=http://127.0.0.1:$auth_port KEYCLOAK_REALM=vantage6
				export KEYCLOAK_ADMIN_USERNAME=admin KEYCLOAK_ADMIN_PASSWORD=A1!$(secret)
				export V6_HQ_URL=http://127.0.0.1:$hq_port/hq V6_AUTH_URL=http://127.0.0.1:$auth_port
				export V6_PYTHON=$python
			END
			cat >"$dir/server-env" <<-END
				export KEYCLOAK_ADMIN_CLIENT=backend-admin-client KEYCLOAK_ADMIN_CLIENT_SECRET=$(secret)
			END
			cat >"$dir/hq.yaml" <<-END
				api_path: /hq
				port: $hq_port
				hq_url: http://127.0.0.1:$hq_port/hq
				base_url: http://127.0.0.1:$hq_port
				uri: sqlite:///$dir/data/hq.sqlite
				jwt_secret_key: $(secret)
				algorithm_stores: []
				directories: {log: $work/log, data: $dir/data}
				logging:
				  level: ${HQ_LOG_LEVEL:-INFO}
				  file: hq-own.log
				  use_console: true
				  backup_count: 2
				  max_size: 10240
				  format: '%(asctime)s - %(name)-14s - %(levelname)-8s - %(message)s'
				  datefmt: '%Y-%m-%d %H:%M:%S'
				  loggers:
				  - {level: warning, name: urllib3}
				  - {level: warning, name: sqlalchemy.engine}
			END
		)
		mv "$dir/env.part" "$dir/env"
	fi
	# shellcheck source=/dev/null
	. "$dir/env"
	# shellcheck source=/dev/null
	. "$dir/server-env"
	auth_port=${KEYCLOAK_URL##*:} hq_port=${V6_HQ_URL%/hq} hq_port=${hq_port##*:}
	start_program auth "$python" "$here/oidc.py" --state "$dir/auth" --port "$auth_port" --realm "$KEYCLOAK_REALM" \
		--access-ttl "${ACCESS_TTL:-300}"
	wait_for auth "an answer from the stand-in for Keycloak" answers "$auth_port" "/realms/$KEYCLOAK_REALM"
	if ! alive hq; then
		# The two steps of vantage6's own image: set up the database, then uWSGI.
		(cd "$dir" && "$python" -m vantage6.hq.init_db "$dir/hq.yaml") >>"$work/log/hq.log" 2>&1 9>&- ||
			die "HQ's database could not be made: see $work/log/hq.log"
		# uWSGI's SIGTERM means reload unless told otherwise.
		(cd "$dir" && start_program hq "$python" -c 'import pyuwsgi; pyuwsgi.run()' \
			--http "127.0.0.1:$hq_port" --gevent 1000 --http-websockets --master --die-on-term \
			--callable app --disable-logging --module vantage6.hq.wsgi:app --pyargv "$dir/hq.yaml")
	fi
	wait_for hq "an answer from HQ" answers "$hq_port" /hq/health
	cat "$dir/env"
}

stop() {
	stop_program hq
	stop_program auth
}

down() {
	stop
	remove_tree "$work/hq"
}

service_main "$@"
