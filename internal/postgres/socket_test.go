package postgres

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

func hostOf(t *testing.T, server *Server) string {
	t.Helper()
	u, err := url.Parse(server.URL("hub", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("host")
}

func TestSocketPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, below string
		elsewhere   bool
	}{
		{"usual", "x", false},
		{"odd characters", `a "quoted" b'c?%&=\x*[`, false},
		{"comma", "a,b", true},
		{"too long", strings.Repeat("long/", 20) + "x", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(tempDir(t), c.below)
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			server := start(t, Config{DataDir: dir})
			host := hostOf(t, server)
			if (host != filepath.Join(dir, "run")) != c.elsewhere {
				t.Errorf("the socket is in %s", host)
			}
			wantMode(t, host, 0o700)
			query(t, server, putData)
			wantData(t, server)

			stop(t, server)
			if _, err := os.Stat(host); (err != nil) != c.elsewhere {
				t.Errorf("after the end the socket's directory should be gone if it is in /tmp, and only then: %v", err)
			}
			if again := start(t, Config{DataDir: dir}); hostOf(t, again) != host {
				t.Error("the socket has moved")
			}
		})
	}
}

func TestSocketLength(t *testing.T) {
	t.Parallel()
	longest := "/" + strings.Repeat("x", maxSocketLen-len("/"+"/"+socketName))
	if why := unfitForSocket(longest); why != "" {
		t.Errorf("%d bytes: %s", len(longest), why)
	}
	if unfitForSocket(longest+"x") == "" {
		t.Error("one byte more should not fit")
	}
}

func TestSomebodyElseWasThereFirst(t *testing.T) {
	t.Parallel()
	base := tempDir(t)
	a := account{name: "me", uid: os.Geteuid(), gid: os.Getegid()}
	target := filepath.Join(base, "target")
	link := filepath.Join(base, "link")
	if err := errors.Join(os.Mkdir(target, 0o777), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	wantText(t, makePrivate(link, a), link, "is not a directory of user me")
	if isRoot() {
		foreign := filepath.Join(base, "foreign")
		if err := errors.Join(os.Mkdir(foreign, 0o700), os.Chown(foreign, 12345, 12345)); err != nil {
			t.Fatal(err)
		}
		wantText(t, makePrivate(foreign, a), foreign, "is not a directory of user me")
	}

	if err := makePrivate(target, a); err != nil { // ours, though it was open to all
		t.Error(err)
	}
	wantMode(t, target, 0o700)
}
