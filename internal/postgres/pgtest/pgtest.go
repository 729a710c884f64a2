// Package pgtest gives every test a PostgreSQL database of its own, on a real server with real migrations.
//
// One server per test process, made when the first test asks for a database and thrown away with everything in it at the
// end. A package needs three lines, where migrate prepares the template (see Main) and hub_app is the role that the
// package's code connects as:
//
//	func TestMain(m *testing.M) {
//		os.Exit(pgtest.Main(m, migrate, "hub_app"))
//	}
//
// and a test one:
//
//	pool, err := pgxpool.New(t.Context(), pgtest.Database(t))
//
// Without a PostgreSQL server on the machine the tests fail, and say how to get one; they are never skipped. The
// environment variable HUB_POSTGRES_BIN names the bin directory of the one to use.
package pgtest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Main runs a package's tests and cleans up after them; what it returns is for os.Exit.
//
// prepare is called once, before the first database is made, to fill the template that all databases are copies of. It
// gets the URL of an empty database for the superuser hub; it may create roles and leave connections open. nil leaves the
// template empty. Not copied is what PostgreSQL keeps outside of a database: its own privileges (GRANT ... ON DATABASE),
// its settings (ALTER DATABASE ... SET) and its comment.
//
// role is whom the URLs of Database are for; it must exist after prepare. Empty means the superuser, whom no row level
// security stops.
func Main(m *testing.M, prepare func(ctx context.Context, adminURL string) error, role string) int {
	c := &cluster{prepare: prepare, role: role}
	theCluster.Store(c)
	defer c.close()
	return m.Run()
}

// theCluster is the one of this process. Package level, because TestMain and tests have nothing else in common.
var theCluster atomic.Pointer[cluster]

// Database makes a fresh database, a copy of the template, and returns its URL for the role given to Main. Each call makes
// another one. It stays until the process ends, connections and all: dropping it would take longer than all else here.
func Database(t testing.TB) string {
	t.Helper()
	c := started(t)
	name, err := c.create(t.Name(), template)
	if err != nil {
		t.Fatal(err)
	}
	databases.put(t, name)
	return c.server.URL(c.role, name)
}

// URL is the URL of the same database for another role: of the one that this test's latest call of Database gave or, in a
// subtest that has not called it, its parent's. "hub" is the superuser.
func URL(t testing.TB, user string) string {
	t.Helper()
	name, ok := databases.get(t)
	if !ok {
		t.Fatal("pgtest.URL: neither this test nor one that it is part of has called pgtest.Database")
	}
	return started(t).server.URL(user, name)
}

// Empty makes a database with nothing in it, not even what prepare does, and returns its URL for the superuser: for tests
// of the migrations themselves. Roles are shared by all databases of the process, so prepare's are there.
func Empty(t testing.TB) string {
	t.Helper()
	c := started(t)
	name, err := c.create(t.Name(), "template0")
	if err != nil {
		t.Fatal(err)
	}
	return c.server.URL(superuser, name)
}

// started is the process's cluster. The first call starts it, and if that failed, all of them fail alike.
func started(t testing.TB) *cluster {
	t.Helper()
	c := theCluster.Load()
	if c == nil {
		t.Fatal("pgtest: this package's TestMain does not call pgtest.Main")
	}
	c.once.Do(func() { c.err = c.start() })
	if c.err != nil {
		t.Fatalf("pgtest: %v", c.err)
	}
	return c
}

// databases are the latest ones of the tests that are running, by the name of the test: a subtest's name starts with its
// parent's.
var databases databaseNames

type databaseNames struct{ byTest sync.Map }

func (d *databaseNames) put(t testing.TB, database string) {
	if _, again := d.byTest.Swap(t.Name(), database); !again {
		t.Cleanup(func() { d.byTest.Delete(t.Name()) })
	}
}

func (d *databaseNames) get(t testing.TB) (database string, ok bool) {
	for name := t.Name(); ; {
		if database, ok := d.byTest.Load(name); ok {
			return database.(string), true
		}
		slash := strings.LastIndexByte(name, '/')
		if slash < 0 {
			return "", false
		}
		name = name[:slash]
	}
}
