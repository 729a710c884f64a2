package postgres

import (
	"io"
	"os"
	"strings"
	"syscall"
)

const (
	maxLogSize = 16 << 20 // bytes; a larger log is put aside at the next start
	tailLines  = 15       // how many lines of the server's log go into an error
	tailBytes  = 8 << 10  // and at most so much of it is read
)

// openLog opens the server's log for appending. One older log is kept, under the same name and ".1".
func (l layout) openLog() (*os.File, error) {
	if info, err := os.Lstat(l.log()); err == nil && info.Size() > maxLogSize {
		if err := os.Rename(l.log(), l.log()+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(l.log(), os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// logTail is the end of what has been written to the log since it had size from.
func (l layout) logTail(from int64) string {
	file, err := os.Open(l.log())
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil {
		from = max(from, info.Size()-tailBytes)
	}
	text, _ := io.ReadAll(io.NewSectionReader(file, from, tailBytes))
	return lastLines(string(text), tailLines)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(text, "\n", "\n  ")
}
