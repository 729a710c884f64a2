package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// initdb makes the cluster. It does so in a directory of another name, which is renamed when all is done and on disk: a
// cluster is there and whole, or is not there. lock is held until the last program is gone, even if hub dies meanwhile.
func (l layout) initdb(ctx context.Context, in Install, a account, lock *dirLock, sync bool) error {
	if err := l.removeHalfMade(); err != nil {
		return err
	}
	var out string
	var err error
	for _, locale := range locales(in.Major) {
		if out, err = l.tryInitdb(ctx, in, a, lock, sync, locale); err == nil || !strings.Contains(out, "locale") {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, indent(lastLines(out, tailLines)))
	}
	return nil
}

// locales are arguments for initdb, to be tried in turn. All of them sort by code point, alike on every machine and
// forever: an index never has to be rebuilt because the C library has changed its mind about an alphabet.
func locales(major int) [][]string {
	all := [][]string{{"--locale=C.UTF-8"}}
	if major >= 17 { // where the C library has no C.UTF-8, PostgreSQL has one of its own
		all = append(all, []string{"--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"})
	}
	return append(all, []string{"--locale=C"})
}

func (l layout) tryInitdb(ctx context.Context, in Install, a account, lock *dirLock, sync bool, locale []string) (out string, err error) {
	half, err := os.MkdirTemp(l.root, filepath.Base(l.newClusters()))
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(half) // nothing there any more when all went well
	if err := a.own(half); err != nil {
		return "", err
	}

	args := []string{
		"--pgdata=" + half, "--username=" + superuser, "--encoding=UTF8", "--data-checksums",
		"--auth-local=trust", "--auth-host=reject", // the socket's directory is what keeps others out
		"--no-instructions",
	}
	if !sync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(in.BinDir, "initdb"), append(args, locale...)...)
	cmd.Env = in.environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = a.attributes()
	cmd.ExtraFiles = []*os.File{lock.file}
	// initdb stops its helpers and cleans up on SIGINT.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output

	runtime.LockOSThread() // see account.attributes
	err = cmd.Run()
	runtime.UnlockOSThread()
	if err != nil {
		return output.String(), err
	}
	// Not os.Rename, which refuses an empty directory as the new name; a mounted volume has one.
	if err := syscall.Rename(half, l.cluster()); err != nil {
		return "", fmt.Errorf("rename %s to %s: %w", half, l.cluster(), err)
	}
	if sync {
		return "", syncDir(l.root)
	}
	return "", nil
}

// removeHalfMade removes what an earlier initdb left that was cut off. The caller holds the lock.
func (l layout) removeHalfMade() error {
	dirs, err := filepath.Glob(escapeGlob(l.root) + "/" + filepath.Base(l.newClusters()))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// escapeGlob makes filepath.Glob take a directory's name as it is.
func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// syncDir makes a rename in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
