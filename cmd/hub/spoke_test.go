package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const spokeYAML = `
name: builder-1
concurrency: 3
leaseSeconds: 2
graceSeconds: 60
operations:
  - namespace: text
    name: upper
    kind: query
    run: printf %s "$INPUT_text" | tr a-z A-Z
    inputSchema: { type: object, required: [text], properties: { text: { type: string } } }
  - { namespace: text, name: echo, kind: query, run: cat }
  - { namespace: text, name: fail, kind: mutation, run: "echo oh >&2; exit 3" }
  - { namespace: text, name: slow, kind: mutation, timeout: 100ms, run: "sleep 60" }
  - { namespace: text, name: sleep, kind: mutation, maxAttempts: 2, run: "echo $$ >> \"$INPUT_file\"; sleep 60" }
`

// startSpoke runs the reference spoke until the test ends.
func startSpoke(t *testing.T, p *process, file string) (kill func()) {
	t.Helper()
	cmd := hubCommand(t, nil, "spoke", "run", "--url", p.url, "--data-dir", p.dir, file)
	out := &output{}
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGKILL); <-exited })
	eventually(t, "the spoke is connected", func() bool { return strings.Contains(out.String(), "connected") })
	return func() { _ = cmd.Process.Signal(syscall.SIGKILL); <-exited }
}

type callAnswer struct {
	Call struct {
		ID, Status string
		ErrorCode  string
		Attempts   int
		Error      json.RawMessage
	}
	Output json.RawMessage
}

func (p *process) call(t *testing.T, name, body string, status int) (got callAnswer) {
	t.Helper()
	if err := json.Unmarshal(p.must(t, status, "POST", "/v1/operations/text."+name+"/call", body), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// The reference spoke, on a real hub: outputs, failures, aborts, its own death.
func TestSpokeRunCommand(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	dir := t.TempDir()
	file := filepath.Join(dir, "spoke.yaml")
	if err := os.WriteFile(file, []byte(spokeYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	kill := startSpoke(t, p, file)

	if got := p.call(t, "upper", `{"input":{"text":"a; exit 1 $(b)"}}`, http.StatusOK); string(got.Output) != `{"stdout":"A; EXIT 1 $(B)"}` {
		t.Errorf("%s", got.Output)
	}
	if got := p.call(t, "echo", `{"input":{"n":1.50,"nul":"\u0000"}}`, http.StatusOK); string(got.Output) != `{"n":1.50,"nul":"\u0000"}` {
		t.Errorf("%s", got.Output)
	}
	if got := p.call(t, "fail", `{}`, http.StatusOK); got.Call.Status != "failed" || got.Call.ErrorCode != "exit_3" || !strings.Contains(string(got.Call.Error), "oh") {
		t.Errorf("%+v", got.Call)
	}
	if got := p.call(t, "slow", `{}`, http.StatusOK); got.Call.ErrorCode != "timeout" {
		t.Errorf("%+v", got.Call)
	}
	p.must(t, http.StatusUnprocessableEntity, "POST", "/v1/operations/text.upper/call", `{}`)

	// An aborted call's command ends.
	started := filepath.Join(dir, "started")
	runs := func() []string { text, _ := os.ReadFile(started); return strings.Fields(string(text)) }
	sleeping := p.call(t, "sleep", `{"waitSeconds":0,"input":{"file":"`+started+`"}}`, http.StatusAccepted)
	eventually(t, "the command runs", func() bool { return len(runs()) == 1 })
	p.must(t, http.StatusOK, "POST", "/v1/calls/"+sleeping.Call.ID+"/abort", `{}`)
	eventually(t, "the command ends", func() bool { _, err := os.Stat("/proc/" + runs()[0]); return err != nil })

	// kill -9 of the spoke: its next connection gets the call again.
	sleeping = p.call(t, "sleep", `{"waitSeconds":0,"input":{"file":"`+started+`"}}`, http.StatusAccepted)
	eventually(t, "the command runs", func() bool { return len(runs()) == 2 })
	kill()
	startSpoke(t, p, file)
	eventually(t, "the command runs again", func() bool { return len(runs()) == 3 })
	if err := json.Unmarshal(p.must(t, http.StatusOK, "GET", "/v1/calls/"+sleeping.Call.ID, ""), &sleeping.Call); err != nil || sleeping.Call.Attempts != 2 {
		t.Errorf("%+v %v", sleeping.Call, err)
	}
	p.must(t, http.StatusOK, "POST", "/v1/calls/"+sleeping.Call.ID+"/abort", `{}`)
}

// A file that is wrong is refused before anything is connected, with what is wrong.
func TestSpokeConfigIsChecked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"operations: []": "at least one operation",
		"operations: [{namespace: a, name: b, kind: query}]":                    "has no command",
		"operations: [{namespace: a, name: b, kind: query, run: x, colour: y}]": "colour",
		"name: [": "yaml",
	} {
		file := filepath.Join(t.TempDir(), "spoke.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSpokeConfig(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
