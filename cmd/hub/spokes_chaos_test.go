package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// Each run of a command is two lines in the log of effects: that it began, and that it ended.
const chaosYAML = `
name: %s
concurrency: 6
leaseSeconds: 1
graceSeconds: 1
operations:
  - { namespace: text, name: once, kind: mutation, run: &run 'echo "b $INPUT_id $HUB_CALL_ATTEMPT" >> %[2]s; sleep 0.0$INPUT_pause; echo "e $INPUT_id $HUB_CALL_ATTEMPT" >> %[2]s; echo "{\"id\":\"$INPUT_id\",\"attempt\":$HUB_CALL_ATTEMPT}"' }
  - { namespace: text, name: often, kind: query, maxAttempts: 10, run: *run }
`

// chaosSteps notes each change of a call's status, whoever makes it.
const chaosSteps = `
CREATE TABLE chaos_steps (n bigint GENERATED ALWAYS AS IDENTITY, request_id text, was text, became text, attempts integer);
CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN INSERT INTO chaos_steps (request_id, was, became, attempts) VALUES (NEW.request_id, OLD.status, NEW.status, NEW.attempts); RETURN NULL; END $$;
CREATE TRIGGER note_step AFTER UPDATE ON calls FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION note_step()`

// spokeProcess is a running hub spoke run.
type spokeProcess struct {
	*exec.Cmd
	out    *output
	exited chan struct{}
}

func runSpoke(t *testing.T, dir, url, file string) *spokeProcess {
	t.Helper()
	s := &spokeProcess{Cmd: hubCommand(t, nil, "spoke", "run", "--url", url, "--data-dir", dir, file), out: &output{}, exited: make(chan struct{})}
	s.Stderr = s.out
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Wait(); close(s.exited) }()
	t.Cleanup(func() { s.end(syscall.SIGKILL) })
	return s
}

func (s *spokeProcess) end(signal syscall.Signal) {
	_ = s.Process.Signal(signal)
	<-s.exited
}

// freePort is one that no other listener gets by chance while its own one is dead.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		address := fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(15000))
		if listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
}

// W06: two hubs, five spokes, and kill -9 of them at random, for a few seconds or as long as HUB_TEST_CHAOS says: each call ends exactly
// once, is done as often as its operation allows, and its caller is told what is stored.
func TestW06_KillsOfSpokesAndHubs(t *testing.T) {
	t.Parallel()
	span := 4 * time.Second
	if text := os.Getenv("HUB_TEST_CHAOS"); text != "" {
		var err error
		if span, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	database, dir := pgtest.Empty(t), dataDir(t)
	key, err := hubCommand(t, nil, "keys", "generate", "--version", "1").Output()
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"DATABASE_URL=" + database, "HUB_ENCRYPTION_KEYS=" + strings.TrimSpace(string(key)), "HUB_RATE_LIMIT=off", "HUB_UPKEEP_INTERVAL=1s"}
	var hubs [2]*process
	addresses := [2]string{freePort(t), freePort(t)}
	for i, address := range addresses {
		hubs[i] = startHubOn(t, dir, address, env...)
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), chaosSteps); err != nil {
		t.Fatal(err)
	}

	effects := filepath.Join(t.TempDir(), "effects")
	var files, urls [5]string
	var spokes [5]*spokeProcess
	for i := range spokes {
		files[i] = filepath.Join(t.TempDir(), fmt.Sprintf("s%d.yaml", i))
		if err := os.WriteFile(files[i], fmt.Appendf(nil, chaosYAML, fmt.Sprintf("s%d", i), effects), 0o600); err != nil {
			t.Fatal(err)
		}
		urls[i] = "http://" + addresses[i%2] + ",http://" + addresses[1-i%2]
		spokes[i] = runSpoke(t, dir, urls[i], files[i])
	}
	eventually(t, "the spokes are connected", func() bool {
		return !slices.ContainsFunc(spokes[:], func(s *spokeProcess) bool { return !strings.Contains(s.out.String(), "connected") })
	})

	// Callers: what a server does not answer the other one is asked, by the same request id.
	type answer struct {
		call   callAnswer
		output string
	}
	var answers sync.Map
	var asked atomic.Int64
	over := make(chan struct{})
	var callers sync.WaitGroup
	send := func(turn int, path, body string) (int, []byte) {
		caller := process{url: "http://" + addresses[turn%2], key: hubs[0].key}
		return caller.send("POST", path, strings.NewReader(body))
	}
	for range 24 {
		callers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				id, name := fmt.Sprintf("r%d", asked.Add(1)), []string{"once", "often"}[rand.IntN(2)]
				body := fmt.Sprintf(`{"requestId":%q,"waitSeconds":5,"timeoutSeconds":600,"input":{"id":%[1]q,"pause":"%02d"}}`, id, rand.IntN(100))
				abort := rand.IntN(20) == 0
				for turn := rand.IntN(2); ; turn++ {
					if abort {
						body = strings.Replace(body, `"waitSeconds":5`, `"waitSeconds":0`, 1)
					}
					status, text := send(turn, "/v1/operations/text."+name+"/call", body)
					var got callAnswer
					if status == http.StatusOK || status == http.StatusAccepted {
						if err := json.Unmarshal(text, &got); err != nil {
							t.Errorf("%s: %v: %s", id, err, text)
							return
						}
					}
					switch {
					case status == http.StatusOK:
						answers.Store(id, answer{got, string(got.Output)})
					case status == http.StatusAccepted && abort:
						time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
						if status, text := send(turn, "/v1/calls/"+got.Call.ID+"/abort", `{}`); status != 0 && status != 200 && status != 409 && status != 503 {
							t.Errorf("%s: abort: %d %s", id, status, text)
						}
						body, abort = strings.Replace(body, `"waitSeconds":0`, `"waitSeconds":5`, 1), false
						continue
					case status == http.StatusAccepted:
						continue
					case status == 0 || status == 503 || status == 404 && strings.Contains(string(text), "operation_not_found"): // nobody offers it at this moment
						time.Sleep(20 * time.Millisecond)
						continue
					default:
						t.Errorf("%s: %d %s", id, status, text)
					}
					break
				}
			}
		})
	}

	// Whom it hits: a spoke, which stays dead or stopped for a while, or a hub.
	var kills, stops, hubKills, ends int
	var revive [5]time.Time
	var stopped [5]bool
	bringBack := func(i int) {
		if stopped[i] {
			_ = spokes[i].Process.Signal(syscall.SIGCONT)
		} else {
			spokes[i] = runSpoke(t, dir, urls[i], files[i])
		}
		stopped[i], revive[i] = false, time.Time{}
	}
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) {
		i := rand.IntN(5)
		switch dice := rand.IntN(10); {
		case dice < 2:
			hub := rand.IntN(2)
			if rand.IntN(4) > 0 {
				hubs[hub].kill(t)
				hubKills++
			} else {
				hubs[hub].stop(t)
			}
			hubs[hub] = startHubOn(t, dir, addresses[hub], env...)
		case !revive[i].IsZero():
		case dice < 7:
			spokes[i].end(syscall.SIGKILL)
			revive[i] = time.Now().Add(time.Duration(rand.IntN(3000)) * time.Millisecond)
			kills++
		case dice < 8: // it ends as it should
			_ = spokes[i].Process.Signal(syscall.SIGTERM)
			select {
			case <-spokes[i].exited:
			case <-time.After(patience):
				t.Fatalf("a spoke does not end: %s", spokes[i].out)
			}
			revive[i] = time.Now().Add(time.Duration(rand.IntN(1000)) * time.Millisecond)
			ends++
		default: // it hangs, so that others take it for dead, and goes on where it was
			_ = spokes[i].Process.Signal(syscall.SIGSTOP)
			stopped[i], revive[i] = true, time.Now().Add(time.Duration(rand.IntN(4000))*time.Millisecond)
			stops++
		}
		for i := range revive {
			if !revive[i].IsZero() && time.Now().After(revive[i]) {
				bringBack(i)
			}
		}
	}
	for i := range revive {
		if !revive[i].IsZero() {
			bringBack(i)
		}
	}
	close(over)
	done := make(chan struct{})
	go func() { callers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * patience):
		rows, _ := conn.Query(context.Background(), `SELECT concat_ws(' ', request_id, operation, status, attempts, spoke_epoch, (SELECT concat_ws(' ', name, epoch, s.status) FROM spokes s WHERE s.id = spoke_id), started_at, now()) FROM calls WHERE ended_at IS NULL`)
		left, _ := pgx.CollectRows(rows, pgx.RowTo[string])
		t.Fatalf("calls hang:\n%s\n%s", strings.Join(left, "\n"), spokes[0].out)
	}

	// What is stored.
	type stored struct {
		Request, Operation, Status, Code, EndedBy, Output, Steps string
		Attempts, Attempted, Ends, Payloads                      int
	}
	rows, err := conn.Query(t.Context(), `
		SELECT c.request_id, c.operation, c.status, coalesce(c.error_code, ''), coalesce(c.ended_by, ''), coalesce(c.output::text, ''), coalesce(string_agg(s.became, ' ' ORDER BY s.n), ''),
		       c.attempts, coalesce(max(s.attempts), 0), count(*) FILTER (WHERE s.became IN ('completed', 'failed', 'aborted')),
		       (SELECT count(*) FROM call_payloads p WHERE p.call_id = c.id)
		FROM calls c LEFT JOIN chaos_steps s ON s.request_id = c.request_id GROUP BY c.org_id, c.id`)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := pgx.CollectRows(rows, pgx.RowToStructByPos[stored])
	if err != nil {
		t.Fatal(err)
	}
	if len(calls) != int(asked.Load()) {
		t.Errorf("%d calls were made, %d are stored", asked.Load(), len(calls))
	}
	text, err := os.ReadFile(effects)
	if err != nil {
		t.Fatal(err)
	}
	began, ended := map[string][]string{}, map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "b" {
			began[fields[1]] = append(began[fields[1]], fields[2])
		} else {
			ended[fields[1]] = append(ended[fields[1]], fields[2])
		}
	}
	outcomes := map[string]int{}
	for _, c := range calls {
		outcomes[strings.TrimSpace(c.Operation+" "+c.Status+" "+c.Code)]++
		fault := func(format string, args ...any) {
			t.Helper()
			t.Errorf("%+v: %s; began %v, ended %v", c, fmt.Sprintf(format, args...), began[c.Request], ended[c.Request])
		}
		given, ok := answers.Load(c.Request)
		if !ok {
			fault("nobody was answered")
			continue
		}
		told := given.(answer)
		if told.call.Call.Status != c.Status || told.call.Call.ErrorCode != c.Code {
			fault("its caller was told %+v", told.call.Call)
		}
		if c.Ends != 1 {
			fault("it ended %d times", c.Ends)
		}
		runs := slices.Compact(slices.Sorted(slices.Values(began[c.Request])))
		if len(runs) != len(began[c.Request]) || len(runs) > c.Attempts {
			fault("an attempt was run twice, or without a start")
		}
		if c.Operation == "text.once" && len(runs) > 1 {
			fault("it was done twice")
		}
		switch c.Status {
		case "completed":
			var output struct {
				ID      string
				Attempt int
			}
			if err := json.Unmarshal([]byte(told.output), &output); err != nil || output.ID != c.Request || output.Attempt != c.Attempts || !slices.Contains(ended[c.Request], fmt.Sprint(c.Attempts)) {
				fault("its output is %s", told.output)
			}
		case "failed":
			if c.Code != "spoke_lost" {
				fault("no reason for a failure")
			}
		}
		if c.Payloads != 0 {
			fault("%d payloads are left", c.Payloads)
		}
	}
	t.Logf("%d calls; %d kills, %d stops and %d ends of spokes, %d kills of hubs; %v", len(calls), kills, stops, ends, hubKills, outcomes)
}
