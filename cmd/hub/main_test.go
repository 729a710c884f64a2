package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// These tests run the program itself. patience is how long they wait for what must happen, on a slow machine too.
const patience = 60 * time.Second

var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "hub-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "hub")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		return pgtest.Main(m, nil, "")
	}())
}

// process is a running `hub serve`.
type process struct {
	*exec.Cmd
	url    string
	dir    string
	key    string
	stdout string
	stderr *output
	exited chan struct{}
}

// output is what a process writes, while it writes.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// dataDir is one that PostgreSQL's own user can reach.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hub-data-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "data")
}

func hubCommand(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HUB_") && !strings.HasPrefix(v, "DATABASE_URL=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// startHub starts the hub and waits until it says that it is ready; env may name a database.
func startHub(t *testing.T, dir string, env ...string) *process {
	t.Helper()
	return startHubOn(t, dir, "127.0.0.1:0", env...)
}

func startHubOn(t *testing.T, dir, address string, env ...string) *process {
	t.Helper()
	p := &process{Cmd: hubCommand(t, env, "serve", "--data-dir", dir, "--listen", address), dir: dir, stderr: &output{}, exited: make(chan struct{})}
	p.Stderr = p.stderr
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		var text strings.Builder
		for lines.Scan() {
			text.WriteString(lines.Text() + "\n")
			if strings.HasPrefix(strings.TrimSpace(lines.Text()), "Data ") {
				ready <- text.String()
			}
		}
		_ = p.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() { p.stop(t) })
	select {
	case p.stdout = <-ready:
	case <-p.exited:
		t.Fatalf("hub ended: %s", p.stderr)
	case <-time.After(patience):
		t.Fatal("hub does not become ready")
	}
	for _, line := range strings.Split(p.stdout, "\n") {
		if url, ok := strings.CutPrefix(strings.TrimSpace(line), "API"); ok {
			p.url = strings.TrimSuffix(strings.TrimSpace(url), "/v1")
		}
	}
	if key, err := os.ReadFile(filepath.Join(dir, "admin-key")); err == nil {
		p.key = strings.TrimSpace(string(key))
	}
	return p
}

// stop ends the hub as a person would, and fails the test where it does not end well.
func (p *process) stop(t *testing.T) {
	t.Helper()
	_ = p.Process.Signal(syscall.SIGTERM)
	p.waitExit(t)
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.Process.Kill()
	p.waitExit(t)
}

func (p *process) waitExit(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Fatalf("hub does not end: %s", p.stderr)
	}
}

// postgresPID is the server that hub runs.
func (p *process) postgresPID(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "postgres", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// send returns status 0 where no answer came.
func (p *process) send(method, path string, body io.Reader) (status int, answer []byte) {
	r, err := http.NewRequest(method, p.url+path, body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	r.Header.Set("Authorization", "Bearer "+p.key)
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return response.StatusCode, answer
}

func (p *process) must(t *testing.T, status int, method, path, body string) []byte {
	t.Helper()
	got, answer := p.send(method, path, strings.NewReader(body))
	if got != status {
		t.Fatalf("%s %s: %d, want %d: %s\n%s", method, path, got, status, answer, p.stderr)
	}
	return answer
}

func (p *process) project(t *testing.T, slug string) string {
	t.Helper()
	var made struct{ ID string }
	if err := json.Unmarshal(p.must(t, 201, "POST", "/v1/projects", `{"slug":"`+slug+`","name":"x"}`), &made); err != nil {
		t.Fatal(err)
	}
	return made.ID
}

// sessions are the ids of all sessions.
func (p *process) sessions(t *testing.T) []string {
	t.Helper()
	var list struct{ Items []struct{ ID string } }
	if err := json.Unmarshal(p.must(t, 200, "GET", "/v1/sessions", ""), &list); err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(list.Items))
	for i, item := range list.Items {
		ids[i] = item.ID
	}
	return ids
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// bigExport is an export of n messages with three parts each.
func bigExport(id string, n int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"info":{"id":%q,"slug":"s","projectID":"p","directory":"/","title":"big","version":"1","time":{"created":1795441960748,"updated":1795441960867}},"messages":[`, id)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"info":{"id":"msg_%[2]s_%[1]d","sessionID":%[2]q,"role":"user","time":{"created":%[3]d}},"parts":[`, i, id, 1795441960767+i)
		for j := range 3 {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"id":"prt_%[2]s_%[1]d_%[3]d","sessionID":%[2]q,"messageID":"msg_%[2]s_%[1]d","type":"text","text":%[4]q}`, i, id, j, strings.Repeat("word ", 50))
		}
		b.WriteString("]}")
	}
	b.WriteString("]}")
	return b.Bytes()
}

func TestFirstStartAndWarmStart(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	p := startHub(t, dir)
	for _, want := range []string{p.url + "/v1", p.url + "/docs", filepath.Join(dir, "admin-key")} {
		if !strings.Contains(p.stdout, want) {
			t.Errorf("the first start does not say %s:\n%s", want, p.stdout)
		}
	}
	for file, mode := range map[string]os.FileMode{"admin-key": 0o600, "postgres": 0o700, "run": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v; want %v", file, info.Mode().Perm(), err, mode)
		}
	}
	if strings.Contains(p.stderr.String(), p.key) {
		t.Error("the key is in the log")
	}
	p.must(t, 200, "GET", "/readyz", "")
	p.project(t, "kept")
	pid := p.postgresPID(t)
	p.stop(t)
	if p.ProcessState.ExitCode() != 0 {
		t.Errorf("exit code %d: %s", p.ProcessState.ExitCode(), p.stderr)
	}
	if syscall.Kill(pid, 0) == nil {
		t.Error("PostgreSQL outlives hub")
	}

	again := startHub(t, dir)
	if again.key != p.key {
		t.Error("another admin key")
	}
	if list := again.must(t, 200, "GET", "/v1/projects?slug=kept", ""); !bytes.Contains(list, []byte("kept")) {
		t.Errorf("the project is gone: %s", list)
	}
}

func TestSecondStartSaysWhoHoldsTheDirectory(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	p := startHub(t, dir)
	out, err := hubCommand(t, nil, "serve", "--data-dir", dir, "--listen", "127.0.0.1:0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), strconv.Itoa(p.Process.Pid)) {
		t.Errorf("%v: %s; want the pid %d", err, out, p.Process.Pid)
	}
	p.must(t, 200, "GET", "/readyz", "")
}

// kill -9, of hub or of its PostgreSQL, in the middle of imports: after the next start each session is there whole or not at all.
func TestKillInTheMiddleOfAnImport(t *testing.T) {
	t.Parallel()
	for _, victim := range []string{"hub", "postgres"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			dir := dataDir(t)
			p := startHub(t, dir)
			project := p.project(t, "shop")
			exports := map[string][]byte{}
			for round := range 3 {
				id := fmt.Sprintf("ses_%s_%d", victim, round)
				exports[id] = bigExport(id, 2000)
				done := make(chan int, 1)
				go func() {
					status, _ := p.send("POST", "/v1/sessions/import?projectId="+project, bytes.NewReader(exports[id]))
					done <- status
				}()
				time.Sleep(time.Duration(100+150*round) * time.Millisecond) // somewhere in the middle; the end is right whenever it was
				if victim == "hub" {
					p.kill(t)
					<-done
					p = startHub(t, dir)
				} else {
					_ = syscall.Kill(p.postgresPID(t), syscall.SIGKILL)
					<-done
					eventually(t, "hub has PostgreSQL again", func() bool { status, _ := p.send("GET", "/readyz", nil); return status == 200 })
				}
				for _, session := range p.sessions(t) {
					text := p.must(t, 200, "GET", "/v1/sessions/"+session+"/export", "")
					var head struct{ Info struct{ ID string } }
					if err := json.Unmarshal(text, &head); err != nil {
						t.Fatal(err)
					}
					if diff := jsonequal.Diff(text, exports[head.Info.ID]); diff != nil {
						t.Errorf("half a session: %v", diff)
					}
				}
			}
			for id := range exports { // and what was cut off can be done again
				if status, answer := p.send("POST", "/v1/sessions/import?projectId="+project, bytes.NewReader(exports[id])); status != 201 && status != 200 {
					t.Errorf("again: %d %s", status, answer)
				}
			}
			if n := len(p.sessions(t)); n != len(exports) {
				t.Errorf("%d sessions, want %d", n, len(exports))
			}
		})
	}
}

// An interrupted hub lets requests under way finish, and its database with them.
func TestGracefulShutdown(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	project := p.project(t, "shop")
	export := bigExport("ses_slow", 500)
	reader, writer := io.Pipe()
	done := make(chan string, 1)
	go func() {
		status, answer := p.send("POST", "/v1/sessions/import?projectId="+project, reader)
		reader.Close()
		done <- fmt.Sprintf("%d %s", status, answer)
	}()
	if _, err := writer.Write(export[:len(export)/2]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // the server has its first byte: before that, closing the connection would be right
	_ = p.Process.Signal(syscall.SIGTERM)
	eventually(t, "the port is closed", func() bool {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get(p.url + "/healthz")
		if err == nil {
			response.Body.Close()
		}
		return err != nil
	})
	_, _ = writer.Write(export[len(export)/2:])
	writer.Close()
	if answer := <-done; !strings.HasPrefix(answer, "201 ") {
		t.Errorf("the request under way ended with %s\n%s", answer, p.stderr)
	}
	p.waitExit(t)
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
}

// A running hub numbers what happens, and its event streams do not keep it from stopping.
func TestX05_EventsOfARunningHub(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	r, err := http.NewRequest("GET", p.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+p.key)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	project := p.project(t, "shop")
	p.must(t, 201, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`)
	lines, seen := bufio.NewScanner(response.Body), false
	for !seen && lines.Scan() {
		seen = strings.HasPrefix(lines.Text(), "data: ") && strings.Contains(lines.Text(), project)
	}
	if !seen {
		t.Fatalf("the stream ended: %v", lines.Err())
	}
	_ = p.Process.Signal(syscall.SIGTERM)
	for lines.Scan() { // to its end
	}
	if lines.Err() != nil {
		t.Errorf("the stream was cut off: %v", lines.Err())
	}
	p.waitExit(t)
	if code := p.ProcessState.ExitCode(); code != 0 || strings.Contains(p.stderr.String(), "cut off") {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
}

// With DATABASE_URL hub uses that server: as one login that owns the database, or as two.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	t.Run("one login", func(t *testing.T) {
		t.Parallel()
		p := startHub(t, dataDir(t), "DATABASE_URL="+pgtest.Empty(t))
		p.project(t, "one")
		if _, err := os.Stat(filepath.Join(p.dir, "postgres")); err == nil {
			t.Error("hub made a cluster of its own")
		}
		p.waitForLog(t, "a login of its own would be safer", 1)
	})
	t.Run("two logins", func(t *testing.T) {
		t.Parallel()
		owner := pgtest.Empty(t)
		conn, err := pgx.Connect(t.Context(), owner)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		config := conn.Config()
		for _, sql := range []string{
			"DO $$ BEGIN CREATE ROLE hub_app; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
			"CREATE ROLE hub_test_login LOGIN IN ROLE hub_app",
			"CREATE ROLE hub_test_bypass LOGIN BYPASSRLS",
		} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		as := func(user string) string {
			return fmt.Sprintf("postgres:///%s?host=%s&user=%s", config.Database, config.Host, user)
		}
		p := startHub(t, dataDir(t), "HUB_DATABASE_URL="+as("hub_test_login"), "HUB_MIGRATE_URL="+owner)
		p.project(t, "two")
		p.stop(t) // its log is whole
		if strings.Contains(p.stderr.String(), "a login of its own would be safer") {
			t.Errorf("a warning for a login that is bound: %s", p.stderr)
		}
		// A login that row-level security does not bind and that cannot become hub_app is not served.
		out, err := hubCommand(t, []string{"HUB_DATABASE_URL=" + as("hub_test_bypass"), "HUB_MIGRATE_URL=" + owner}, "serve", "--data-dir", dataDir(t), "--listen", "127.0.0.1:0").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "permission denied to set role") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestImportCommand(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	files := filepath.Join("..", "..", "internal", "opencode", "testdata")
	run := func(args ...string) (string, error) {
		out, err := hubCommand(t, nil, append([]string{"import", "opencode", "--url", p.url, "--data-dir", p.dir}, args...)...).CombinedOutput()
		return string(out), err
	}
	out, err := run("--project", "shop-api", files)
	if err != nil || !strings.Contains(out, "sessions  18 created, 1 updated, 0 unchanged, 0 older than what the hub has, 0 refused") {
		t.Errorf("%v:\n%s", err, out)
	}
	out, err = run("--project", "shop-api", files)
	if err != nil || !strings.Contains(out, "sessions  0 created, 0 updated, 18 unchanged, 1 older") || !strings.Contains(out, "messages  0 created, 0 updated, 0 deleted") {
		t.Errorf("again: %v:\n%s", err, out)
	}
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"info":{"id":5},"messages":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = run("--project", "shop-api", broken, filepath.Join(files, "01-text-chat.json"))
	if err == nil || !strings.Contains(out, "/info/id") || !strings.Contains(out, "1 of 2 files were refused") || !strings.Contains(out, "1 unchanged") {
		t.Errorf("a broken file beside a good one: %v:\n%s", err, out)
	}
	var found struct {
		Items []struct{ ID string }
	}
	if err := json.Unmarshal(p.must(t, 200, "GET", "/v1/sessions?sourceId=ses_df7518d9dffes01I9g0964mq3k", ""), &found); err != nil || len(found.Items) != 1 {
		t.Fatalf("%v %+v", err, found)
	}
	archive := filepath.Join(t.TempDir(), "tree.zip")
	if err := os.WriteFile(archive, p.must(t, 200, "GET", "/v1/sessions/"+found.Items[0].ID+"/export/tree", ""), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("--project", "shop-api", archive); err != nil || !strings.Contains(out, "sessions  0 created, 0 updated, 4 unchanged") {
		t.Errorf("an archive: %v:\n%s", err, out)
	}
	cmd := hubCommand(t, []string{"HUB_API_KEY=" + p.key, "HUB_URL=" + p.url}, "import", "opencode", "--project", "other", "-")
	cmd.Stdin = bytes.NewReader(bigExport("ses_stdin", 3))
	if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "sessions  1 created") {
		t.Errorf("standard input: %v:\n%s", err, text)
	}
	if out, err := run("--key", "hub_wrong", broken); err == nil || !strings.Contains(out, "unauthenticated") {
		t.Errorf("a wrong key: %v:\n%s", err, out)
	}
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + pgtest.Empty(t)}
	files, err := migrate.Files()
	if err != nil {
		t.Fatal(err)
	}
	latest, before := fmt.Sprint(migrate.Latest()), fmt.Sprint(files[len(files)-2].Version)
	for _, step := range []struct{ args, want string }{
		{"version", "at version 0"}, {"up", "at version " + latest}, {"down 1", "at version " + before}, {"up", "at version " + latest}, {"force " + latest, "at version " + latest},
	} {
		out, err := hubCommand(t, env, append([]string{"migrate"}, strings.Fields(step.args)...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), step.want) {
			t.Errorf("migrate %s: %v: %s", step.args, err, out)
		}
	}
	for _, args := range []string{"down", "down x", "down 0", "force x"} {
		if out, err := hubCommand(t, env, append([]string{"migrate"}, strings.Fields(args)...)...).CombinedOutput(); err == nil {
			t.Errorf("migrate %s: passed: %s", args, out)
		}
	}
}
