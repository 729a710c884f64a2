package postgres

import (
	"os"
	"strings"
	"testing"
)

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	l := layout{t.TempDir()}
	for _, c := range []struct {
		size    int64
		rotated bool
	}{{maxLogSize, false}, {maxLogSize + 1, true}, {maxLogSize + 2, true}} {
		if err := os.WriteFile(l.log(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(l.log(), c.size); err != nil {
			t.Fatal(err)
		}
		file, err := l.openLog()
		if err != nil {
			t.Fatal(err)
		}
		info, err := file.Stat()
		file.Close()
		if err != nil || (info.Size() == 0) != c.rotated {
			t.Errorf("%d bytes: the log has %d now (%v)", c.size, info.Size(), err)
		}
		if old, err := os.Stat(l.log() + ".1"); c.rotated && (err != nil || old.Size() != c.size) {
			t.Errorf("%d bytes: the older log: %v %v", c.size, old, err)
		}
	}
}

func TestLogTail(t *testing.T) {
	t.Parallel()
	l := layout{t.TempDir()}
	text := "of an earlier start\n" + strings.Repeat("a line\n", 10_000) + "the last\n"
	if err := os.WriteFile(l.log(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := l.logTail(0), strings.Repeat("a line\n", tailLines-1)+"the last"; got != want {
		t.Errorf("%q", got)
	}
	if got := l.logTail(int64(len(text) - len("the last\n"))); got != "the last" {
		t.Errorf("%q", got)
	}
}
