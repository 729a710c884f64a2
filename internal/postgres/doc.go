// Package postgres runs hub's own PostgreSQL server, for who has no DATABASE_URL: it finds the server's programs on this
// machine, makes a cluster in hub's data directory, and keeps one `postgres` process for as long as hub lives.
//
// What is inside a data directory, and whose it is when hub runs as root (everything is the user's own otherwise):
//
//	.hub/                  root:postgres 0710  the server's user may pass, but neither list nor write
//	.hub/hub.lock          root 0600           flock: one hub per data directory; says who holds it (lock.go)
//	.hub/postgres/         postgres 0700       the cluster: PG_VERSION, base, pg_wal, ...
//	.hub/postgres.log      root 0600           what the server writes to stderr (logfile.go)
//	.hub/postgres.new-*/   postgres 0700       an initdb under way, or cut off: removed at the next start
//	.hub/run/              postgres 0700       the unix socket (elsewhere when that path is too long: socket.go)
//
// The package works on Linux only: it rests on flock, on PR_SET_PDEATHSIG (the server gets SIGINT, "fast shutdown", when
// hub dies in whatever way) and on /proc.
package postgres
