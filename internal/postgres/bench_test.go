package postgres

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkStart measures Start as hub does it, fsync and all, without the Stop. On a disk: TMPDIR says on which.
func BenchmarkStart(b *testing.B) {
	base, err := os.MkdirTemp("", "hub-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := os.Chmod(base, 0o711); err != nil {
		b.Fatal(err)
	}
	run := func(b *testing.B, dir string) {
		server, err := Start(context.Background(), Config{DataDir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		stop(b, server)
		b.StartTimer()
	}
	b.Run("cold", func(b *testing.B) { // initdb included
		for b.Loop() {
			dir := filepath.Join(base, "cold")
			run(b, dir)
			b.StopTimer()
			os.RemoveAll(dir)
			b.StartTimer()
		}
	})
	b.Run("warm", func(b *testing.B) {
		dir := filepath.Join(base, "warm")
		run(b, dir)
		for b.Loop() {
			run(b, dir)
		}
	})
}
