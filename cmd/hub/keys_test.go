package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/alkdev/hub/internal/postgres/pgtest"
)

func (p *process) newClient(t *testing.T) string {
	t.Helper()
	var made struct{ ID string }
	if err := json.Unmarshal(p.must(t, 201, "POST", "/v1/clients", `{"name":"forge","type":"git-forge","config":{"kind":"gitea"}}`), &made); err != nil {
		t.Fatal(err)
	}
	return made.ID
}

func secretPath(client string, n int) string {
	return fmt.Sprintf("/v1/clients/%s/secrets/s%d", client, n)
}

// reveal is the value, or how revealing it failed.
func (p *process) reveal(client string, n int) string {
	status, answer := p.send("POST", secretPath(client, n)+"/reveal", nil)
	var got struct{ Value string }
	if err := json.Unmarshal(answer, &got); err != nil || status != 200 {
		return fmt.Sprintf("%d %s", status, answer)
	}
	return got.Value
}

// keys runs a `hub keys` command against the hub.
func (p *process) keys(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := hubCommand(t, nil, append(append([]string{"keys"}, args...), "--url", p.url, "--data-dir", p.dir)...).CombinedOutput()
	return string(out), err
}

// waitForLog waits until hub has written so many lines with this text. The log comes through a pipe of its own, so even what hub
// logs before it says that it is ready may be read after that.
func (p *process) waitForLog(t *testing.T, text string, times int) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Count(p.stderr.String(), text) >= times })
}

// A key's whole life, as docs/secrets.md has it, with the commands and signals that it names.
func TestC11_ChangingKeys(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	file := filepath.Join(p.dir, "encryption-keys")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	client := p.newClient(t)
	for n := range 30 {
		p.must(t, 201, "PUT", secretPath(client, n), fmt.Sprintf(`{"value":"value %d"}`, n))
	}
	expect := func(want ...string) {
		t.Helper()
		out, err := p.keys(t, "status")
		for _, line := range want {
			if !regexp.MustCompile(`(?m)^`+line+`$`).MatchString(out) || err != nil {
				t.Errorf("status: %v\n%s\nwant %s", err, out, line)
			}
		}
	}
	loads := 1
	load := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		loads++
		_ = p.Process.Signal(syscall.SIGHUP)
		p.waitForLog(t, `"msg":"encryption keys"`, loads)
	}
	expect(`v1 +[0-9a-f]{16} +30 +encrypts`)
	out, err := p.keys(t, "rotate")
	if err != nil || !strings.Contains(out, "0 secrets were brought under v1.") {
		t.Errorf("%v %s", err, out)
	}

	generated, err := hubCommand(t, nil, "keys", "generate", "--data-dir", p.dir).CombinedOutput()
	if err != nil || !regexp.MustCompile(`^v2:[A-Za-z0-9+/]{43}=\n$`).Match(generated) {
		t.Fatalf("%v %s", err, generated)
	}
	load(string(first) + string(generated))
	expect(`v1 +[0-9a-f]{16} +30 +encrypts`, `v2 +[0-9a-f]{16} +0 +unused: .*`)
	load(string(generated) + string(first))
	expect(`v1 +[0-9a-f]{16} +30 +decrypts; to be rotated \(hub keys rotate\)`, `v2 +[0-9a-f]{16} +0 +encrypts`)
	out, err = p.keys(t, "rotate")
	if err != nil || !strings.Contains(out, "30 secrets were brought under v2.") {
		t.Errorf("%v %s", err, out)
	}
	expect(`v1 +[0-9a-f]{16} +0 +unused: .*`, `v2 +[0-9a-f]{16} +30 +encrypts`)
	if out, err := p.keys(t, "retire", "v1"); err == nil || !strings.Contains(out, "encryption_key_held") {
		t.Errorf("%v %s", err, out)
	}

	// Lists that cannot be used leave the one before in use.
	for i, bad := range []string{"", "nonsense", "v1:AAAA", strings.Replace(string(generated), "v2:", "v1:", 1)} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = p.Process.Signal(syscall.SIGHUP)
		p.waitForLog(t, "the encryption keys stay as they were", i+1)
		if got := p.reveal(client, i); got != fmt.Sprintf("value %d", i) {
			t.Error(got)
		}
	}
	load(string(generated))
	expect(`v1 +[0-9a-f]{16} +0 +retired: .*`)
	if out, err := p.keys(t, "retire", "v1"); err != nil || out != "v1 is forgotten.\n" {
		t.Errorf("%v %s", err, out)
	}
	for n := range 30 {
		if got := p.reveal(client, n); got != fmt.Sprintf("value %d", n) {
			t.Error(got)
		}
	}
	for _, key := range []string{string(first), string(generated)} {
		for line := range strings.Lines(key) {
			if secret, ok := strings.CutPrefix(strings.TrimSpace(line), "v"); ok && strings.Contains(p.stderr.String(), secret[2:]) {
				t.Error("a key is in the log")
			}
		}
	}
	for _, args := range [][]string{{"retire"}, {"retire", "x"}, {"retire", "v0"}, {"retire", "v9"}, {"generate", "--version", "0"}, {"nonsense"}} {
		if out, err := hubCommand(t, []string{"HUB_URL=" + p.url, "HUB_API_KEY=" + p.key}, append([]string{"keys"}, args...)...).CombinedOutput(); err == nil {
			t.Errorf("keys %v: %s", args, out)
		}
	}
}

func TestC11_KeysAtTheStart(t *testing.T) {
	t.Parallel()
	database := "DATABASE_URL=" + pgtest.Empty(t)
	dir := dataDir(t)
	generate := func(version string) string {
		out, err := hubCommand(t, nil, "keys", "generate", "--version", version).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	one, wrong, two := generate("1"), generate("1"), generate("2")

	// With a database of one's own, hub makes no key: another hub would make another.
	p := startHub(t, dir, database)
	p.waitForLog(t, "there is no encryption key", 1)
	if _, err := os.Stat(filepath.Join(dir, "encryption-keys")); err == nil {
		t.Error("a key was made")
	}
	client := p.newClient(t)
	p.must(t, 424, "PUT", secretPath(client, 0), `{"value":"hush"}`)
	p.stop(t)

	p = startHub(t, dir, database, "HUB_ENCRYPTION_KEYS="+one)
	p.must(t, 201, "PUT", secretPath(client, 0), `{"value":"hush"}`)
	_ = p.Process.Signal(syscall.SIGHUP)
	p.waitForLog(t, "HUB_ENCRYPTION_KEYS is read at the start only", 1)
	p.stop(t)

	for what, c := range map[string]struct {
		env  []string
		want string
	}{
		"a wrong key":     {[]string{"HUB_ENCRYPTION_KEYS=" + two + "," + wrong}, "v1 has the fingerprint "},
		"nonsense":        {[]string{"HUB_ENCRYPTION_KEYS=" + one[:20]}, "HUB_ENCRYPTION_KEYS: key number 1: v1 must be followed by the base64 of 32 bytes"},
		"both":            {[]string{"HUB_ENCRYPTION_KEYS=" + one, "HUB_ENCRYPTION_KEYS_FILE=/x"}, "not both"},
		"no such file":    {[]string{"HUB_ENCRYPTION_KEYS_FILE=/nowhere/keys"}, "/nowhere/keys"},
		"metrics for who": {[]string{"HUB_METRICS=some"}, "HUB_METRICS"},
		"no rate":         {[]string{"HUB_ROTATION_RATE=0"}, "HUB_ROTATION_RATE"},
	} {
		out, err := hubCommand(t, append(c.env, database), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0").CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v: %s", what, err, out)
		}
		for _, key := range []string{one, wrong, two} {
			if strings.Contains(string(out), key[3:13]) {
				t.Errorf("%s: the key is shown: %s", what, out)
			}
		}
	}

	// Without the key, the rest is served.
	p = startHub(t, dir, database, "HUB_ENCRYPTION_KEYS="+two)
	p.waitForLog(t, "secrets cannot be revealed: 1 under v1", 1)
	if got := p.must(t, 200, "GET", "/readyz", ""); !bytes.Contains(got, []byte("1 under v1")) {
		t.Errorf("%s", got)
	}
	p.must(t, 424, "POST", secretPath(client, 0)+"/reveal", "")
	p.must(t, 201, "PUT", secretPath(client, 1), `{"value":"hush"}`)
	if out, err := p.keys(t, "status"); err != nil || !strings.Contains(out, "MISSING: these secrets cannot be revealed") {
		t.Errorf("%v %s", err, out)
	}
}

// kill -9 of a server in the middle of rotations, at random, as often as HUB_TEST_KILLS says: every secret still decrypts, none is
// lost, the rotations complete, and nobody who reads through another server meanwhile notices.
func TestC11_KillInTheMiddleOfARotation(t *testing.T) {
	t.Parallel()
	const secrets = 1500
	kills := 5
	if text := os.Getenv("HUB_TEST_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	database, dir := "DATABASE_URL="+pgtest.Empty(t), dataDir(t)
	var keys [2]string
	for i := range keys {
		out, err := hubCommand(t, nil, "keys", "generate", "--version", fmt.Sprint(i+1)).Output()
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = strings.TrimSpace(string(out))
	}
	// It sweeps as well, but one secret per second: it is here to read.
	reader := startHub(t, dir, database, "HUB_ENCRYPTION_KEYS="+keys[0]+","+keys[1], "HUB_ROTATION_RATE=1")
	client := reader.newClient(t)
	value := func(n int) string { return fmt.Sprintf("value %d", n) }
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for n := worker; n < secrets; n += 8 {
				if status, answer := reader.send("PUT", secretPath(client, n), strings.NewReader(`{"value":"`+value(n)+`"}`)); status != 201 {
					t.Errorf("%d %s", status, answer)
				}
			}
		})
	}
	group.Wait()

	reading, stopReading := context.WithCancel(context.Background())
	defer stopReading()
	var reads atomic.Int64
	group.Go(func() {
		for reading.Err() == nil {
			n := rand.IntN(secrets)
			if got := reader.reveal(client, n); got != value(n) {
				t.Errorf("a reader got %q, want %q", got, value(n))
				return
			}
			reads.Add(1)
			time.Sleep(2 * time.Millisecond)
		}
	})

	type progress struct {
		ID, Status               string
		Total, Rotated, Failed   int
		Remaining, TargetVersion int
	}
	at := func(p *process, method, path string, status int) (r progress) {
		if err := json.Unmarshal(p.must(t, status, method, path, ""), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	target, completed, inTheMiddle := 1, 0, 0
	var running string // the rotation that was cut off
	start := func() *process {
		if running == "" {
			target = 3 - target
		}
		return startHub(t, dir, database, "HUB_ENCRYPTION_KEYS="+keys[target-1]+","+keys[2-target], "HUB_ROTATION_RATE=2000")
	}
	for round := 0; inTheMiddle < kills && round < 5*kills; round++ {
		victim := start()
		if running == "" {
			running = at(victim, "POST", "/v1/secret-rotations", 202).ID
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		victim.kill(t)
		now := at(reader, "GET", "/v1/secret-rotations/"+running, 200)
		if now.TargetVersion != target || now.Failed != 0 {
			t.Fatalf("%+v, target %d", now, target)
		}
		switch {
		case now.Status == "completed":
			running = ""
			completed++
			if now.Rotated != now.Total || now.Total != secrets {
				t.Errorf("each secret is counted once: %+v", now)
			}
		case now.Rotated > 0:
			inTheMiddle++
		}
	}
	last := start()
	if running == "" {
		running = at(last, "POST", "/v1/secret-rotations", 202).ID
	}
	var end progress
	eventually(t, "the rotation completes", func() bool {
		end = at(last, "GET", "/v1/secret-rotations/"+running, 200)
		return end.Status == "completed"
	})
	if end.Rotated != secrets || end.Remaining != 0 || end.Failed != 0 {
		t.Errorf("%+v", end)
	}
	stopReading()
	group.Wait()
	for n := range secrets {
		if got := last.reveal(client, n); got != value(n) {
			t.Errorf("%q, want %q", got, value(n))
		}
	}
	if inTheMiddle < kills {
		t.Errorf("only %d of %d kills were in the middle", inTheMiddle, kills)
	}
	t.Logf("%d kills in the middle of %d rotations; %d reads meanwhile", inTheMiddle, completed+1, reads.Load())
}
