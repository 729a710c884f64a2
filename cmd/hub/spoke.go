package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/alkdev/hub/gen/client"
)

// The reference spoke: what a spoke in any language does, written on the generated client alone.

func spokeCommand() *cobra.Command {
	cmd := &cobra.Command{Args: cobra.NoArgs, RunE: showHelp, Use: "spoke", Short: "Do work for others"}
	cmd.AddCommand(spokeRunCommand())
	return cmd
}

func spokeRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run CONFIG",
		Short: "Offer shell commands as operations",
		Long: `Connect to a hub, offer the operations of a YAML file, and run their commands when they are called, until interrupted.

  name: builder-1              # the same each time; the file's name where it is absent
  concurrency: 4               # calls at once; 4
  operations:
    - namespace: git
      name: log
      kind: query              # query or mutation
      description: The latest commits.
      run: git -C "$INPUT_path" log --oneline -n "${INPUT_count:-10}"
      timeout: 30s             # for one run; until the call's deadline
      inputSchema: { type: object, required: [path], properties: { path: { type: string }, count: { type: integer } } }
      maxAttempts: 2           # may be run again by another spoke when this one dies; 1

run is for /bin/sh. The input is JSON on its standard input, and each member that is a string, number or boolean is INPUT_<name> in its
environment: nothing of it is pasted into the command. Standard output is the call's output: as it is where it is JSON, else {"stdout": text}.
A command that fails fails its call, with exit_<code> and the end of its standard error. An aborted call's command is ended.`,
		Example: "  hub spoke run spoke.yaml",
		Args:    cobra.ExactArgs(1),
	}
	connect := connectFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		config, err := readSpokeConfig(args[0])
		if err != nil {
			return err
		}
		hub, err := connect()
		if err != nil {
			return err
		}
		s := &spokeRunner{hub: hub, config: config, log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)), running: map[uuid.UUID]context.CancelFunc{}}
		return s.run(cmd.Context())
	}
	return cmd
}

type spokeConfig struct {
	Name         string             `yaml:"name"`
	Concurrency  int                `yaml:"concurrency"`
	LeaseSeconds int32              `yaml:"leaseSeconds"`
	GraceSeconds int32              `yaml:"graceSeconds"`
	Operations   []operationCommand `yaml:"operations"`
}

type operationCommand struct {
	Namespace    string         `yaml:"namespace"`
	Name         string         `yaml:"name"`
	Kind         string         `yaml:"kind"`
	Version      string         `yaml:"version"`
	Title        string         `yaml:"title"`
	Description  string         `yaml:"description"`
	Run          string         `yaml:"run"`
	Timeout      time.Duration  `yaml:"timeout"`
	InputSchema  map[string]any `yaml:"inputSchema"`
	OutputSchema map[string]any `yaml:"outputSchema"`
	ScopesAll    []string       `yaml:"scopesAll"`
	ScopesAny    []string       `yaml:"scopesAny"`
	RedactPaths  []string       `yaml:"redactPaths"`
	MaxAttempts  int32          `yaml:"maxAttempts"`
}

func readSpokeConfig(file string) (spokeConfig, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return spokeConfig{}, err
	}
	config := spokeConfig{Concurrency: 4, LeaseSeconds: 30, GraceSeconds: 60}
	config.Name = regexp.MustCompile(`[^A-Za-z0-9._-]`).ReplaceAllString(strings.TrimSuffix(filepath.Base(file), ".yaml"), "-")
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil {
		return spokeConfig{}, fmt.Errorf("%s: %w", file, err)
	}
	if config.Concurrency < 1 || len(config.Operations) == 0 {
		return spokeConfig{}, fmt.Errorf("%s: a spoke offers at least one operation, and does at least one call at once", file)
	}
	for i, op := range config.Operations {
		if op.Run == "" {
			return spokeConfig{}, fmt.Errorf("%s: operation %d (%s.%s) has no command: say what to run", file, i+1, op.Namespace, op.Name)
		}
	}
	return config, nil
}

type spokeRunner struct {
	hub    *client.ClientWithResponses
	config spokeConfig
	log    *slog.Logger

	id       uuid.UUID
	epoch    int32
	draining bool

	mu      sync.Mutex
	running map[uuid.UUID]context.CancelFunc
	calls   sync.WaitGroup
}

// errEnded says that the connection is no longer the spoke's: it registers again.
var errEnded = errors.New("the connection has ended")

// run connects and takes calls, and connects again when the hub says that the connection has ended, until ctx ends.
func (s *spokeRunner) run(ctx context.Context) error {
	for first := true; ; first = false {
		err := s.connect(ctx)
		if err != nil && first && ctx.Err() == nil {
			return err // a wrong key or file: nothing that time heals
		}
		for err == nil {
			err = s.takeOnce(ctx)
			if err != nil && !errors.Is(err, errEnded) && ctx.Err() == nil { // what runs goes on: the connection may hold still
				s.log.Warn("the hub is not to be had, and is tried again", "cause", err)
				err = nil
				rest(ctx, 250*time.Millisecond)
			}
			if ctx.Err() != nil {
				err = ctx.Err()
			}
		}
		if ctx.Err() != nil {
			break
		}
		s.stopAll() // calls of a connection that has ended
		if !errors.Is(err, errEnded) {
			s.log.Warn("the hub is not to be had, and is tried again", "cause", err)
			rest(ctx, 2*time.Second)
		}
	}
	if s.id == uuid.Nil {
		return nil
	}
	s.drain(ctx)
	// Its operations go with it, at once and not after a grace period.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := s.hub.DisconnectSpokeWithResponse(last, s.id, nil, client.SpokeConnection{Epoch: s.epoch}); err != nil {
		s.log.Warn("the hub was not told", "cause", err)
	}
	return nil
}

// rest is over early when ctx ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// drain offers nothing any more, and lets what runs end: takes of nothing say meanwhile that the spoke lives, and hear what to stop.
func (s *spokeRunner) drain(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	s.draining = true
	if put, err := s.hub.PutOperationsWithResponse(ctx, s.id, client.OperationsPut{Epoch: s.epoch, Operations: []client.OperationOffer{}}); err != nil || put.JSON200 == nil {
		s.log.Warn("the hub was not told that nothing is offered any more")
	}
	ended := make(chan struct{})
	go func() { s.calls.Wait(); close(ended) }()
	for {
		select {
		case <-ended:
			return
		case <-time.After(200 * time.Millisecond):
		}
		if errors.Is(s.takeOnce(ctx), errEnded) {
			s.stopAll()
		}
	}
}

func (s *spokeRunner) connect(ctx context.Context) error {
	registered, err := s.hub.RegisterSpokeWithResponse(ctx, nil, client.SpokeRegister{
		Name: s.config.Name, Version: pointer(programVersion()), LeaseSeconds: &s.config.LeaseSeconds, GraceSeconds: &s.config.GraceSeconds,
	})
	if err != nil {
		return err
	}
	if registered.JSON200 == nil {
		return refusal(registered.Body, registered.Status())
	}
	s.id, s.epoch = registered.JSON200.Id, registered.JSON200.Epoch
	offers := make([]client.OperationOffer, len(s.config.Operations))
	for i, op := range s.config.Operations {
		if offers[i], err = op.offer(); err != nil {
			return err
		}
	}
	put, err := s.hub.PutOperationsWithResponse(ctx, s.id, client.OperationsPut{Epoch: s.epoch, Operations: offers})
	if err != nil {
		return err
	}
	if put.JSON200 == nil {
		return refusal(put.Body, put.Status())
	}
	s.log.Info("connected", "spoke", s.id.String(), "epoch", s.epoch, "operations", len(offers))
	return nil
}

func (op operationCommand) offer() (client.OperationOffer, error) {
	offer := client.OperationOffer{
		Namespace: op.Namespace, Name: op.Name, Kind: client.OperationKind(op.Kind), Title: given(op.Title), Description: given(op.Description), Version: given(op.Version),
		ScopesAll: &op.ScopesAll, ScopesAny: &op.ScopesAny, RedactPaths: &op.RedactPaths,
	}
	for _, list := range []**[]string{&offer.ScopesAll, &offer.ScopesAny, &offer.RedactPaths} {
		if len(**list) == 0 {
			*list = nil
		}
	}
	if op.MaxAttempts != 0 {
		offer.MaxAttempts = &op.MaxAttempts
	}
	for _, schema := range []struct {
		from map[string]any
		into **client.JSONObject
	}{{op.InputSchema, &offer.InputSchema}, {op.OutputSchema, &offer.OutputSchema}} {
		if schema.from != nil {
			text, err := json.Marshal(schema.from)
			if err != nil {
				return offer, fmt.Errorf("%s.%s: %w", op.Namespace, op.Name, err)
			}
			*schema.into = pointer(client.JSONObject(text))
		}
	}
	return offer, nil
}

// takeOnce takes what there is to do. A take that is open is a heartbeat too; a spoke without room takes only what to stop.
func (s *spokeRunner) takeOnce(ctx context.Context) error {
	s.mu.Lock()
	room := int32(min(20, s.config.Concurrency-len(s.running)))
	s.mu.Unlock()
	wait := int32(20)
	if s.draining {
		room = 0
	}
	if room == 0 {
		wait = 1
	}
	waiting, cancel := context.WithTimeout(ctx, time.Duration(wait)*time.Second+answerTimeout) // a server may be gone without a word
	defer cancel()
	answer, err := s.hub.TakeCallsWithResponse(waiting, s.id, nil, client.CallsTake{Epoch: s.epoch, MaxCalls: &room, WaitSeconds: &wait})
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		if strings.Contains(string(answer.Body), `"spoke_epoch_stale"`) {
			return errEnded
		}
		return refusal(answer.Body, answer.Status())
	}
	for _, id := range answer.JSON200.Stopped {
		s.mu.Lock()
		if stop := s.running[id]; stop != nil {
			s.log.Info("stopped", "call", id.String())
			stop()
		}
		s.mu.Unlock()
	}
	for _, call := range answer.JSON200.Calls {
		// Not ctx: a call under way ends by itself when the spoke is to end.
		running, stop := context.WithDeadline(context.WithoutCancel(ctx), call.DeadlineAt)
		s.mu.Lock()
		s.running[call.Id] = stop
		s.mu.Unlock()
		id, epoch := s.id, s.epoch
		s.calls.Go(func() {
			defer func() {
				stop()
				s.mu.Lock()
				delete(s.running, call.Id)
				s.mu.Unlock()
			}()
			if err := s.do(running, id, epoch, call); err != nil {
				s.log.Warn("call", "call", call.Id.String(), "operation", call.Operation, "cause", err)
			}
		})
	}
	return nil
}

func (s *spokeRunner) stopAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stop := range s.running {
		stop()
	}
}

// do runs a call's command. Its start, and its end, are said with the epoch of the connection that took it.
func (s *spokeRunner) do(ctx context.Context, id uuid.UUID, epoch int32, call client.TakenCall) error {
	// With a key: a start whose answer got lost is not refused when it is said again, and the call would be nobody's.
	key := uuid.NewString()
	started, err := insist(ctx, func(ctx context.Context) (*client.StartCallResponse, error) {
		return s.hub.StartCallWithResponse(ctx, call.Id, &client.StartCallParams{IdempotencyKey: &key}, client.CallStep{SpokeId: id, Epoch: epoch})
	})
	if err != nil {
		return err
	}
	if started.JSON200 == nil {
		return refusal(started.Body, started.Status()) // somebody else's by now
	}
	output, code, fault := s.config.execute(ctx, call)
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil // it was stopped: it is over already
	}
	report, cancel := context.WithDeadline(context.WithoutCancel(ctx), call.DeadlineAt.Add(answerTimeout))
	defer cancel()
	if code == "" {
		done, err := insist(report, func(ctx context.Context) (*client.CompleteCallResponse, error) {
			return s.hub.CompleteCallWithResponse(ctx, call.Id, nil, client.CallComplete{SpokeId: id, Epoch: epoch, Output: &output})
		})
		if err != nil || done.JSON200 != nil || isOver(done) {
			return err
		}
		if !strings.Contains(string(done.Body), `"call_output_invalid"`) {
			return refusal(done.Body, done.Status())
		}
		code, fault = "output_invalid", done.Body
	}
	failed, err := insist(report, func(ctx context.Context) (*client.FailCallResponse, error) {
		return s.hub.FailCallWithResponse(ctx, call.Id, nil, client.CallFail{SpokeId: id, Epoch: epoch, Code: code, Error: &fault})
	})
	if err != nil || failed.JSON200 != nil || isOver(failed) {
		return err
	}
	return refusal(failed.Body, failed.Status())
}

// answerTimeout is how long an answer may take before the request is sent again.
const answerTimeout = 10 * time.Second

type answered interface {
	StatusCode() int
	GetBody() []byte
}

// insist sends until it is answered: a step that is not said leaves its call running until its deadline. Each may be sent again, since
// it bears a key or is refused the second time (isOver).
func insist[A answered](ctx context.Context, send func(context.Context) (A, error)) (A, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		once, cancel := context.WithTimeout(ctx, answerTimeout)
		answer, err := send(once)
		cancel()
		if err == nil && answer.StatusCode() < 500 && answer.StatusCode() != http.StatusTooManyRequests && !strings.Contains(string(answer.GetBody()), `"idempotency_in_progress"`) {
			return answer, nil
		}
		if rest(ctx, pause); ctx.Err() != nil {
			return answer, errors.Join(err, ctx.Err())
		}
	}
}

// isOver: the call's end was heard before, or somebody else brought it about.
func isOver(answer answered) bool {
	return strings.Contains(string(answer.GetBody()), `"call_not_over"`)
}

const (
	maxStdout = 8 << 20
	maxStderr = 4 << 10
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// execute runs the command of a call's operation; code is "" where it succeeded.
func (c spokeConfig) execute(ctx context.Context, call client.TakenCall) (output json.RawMessage, code string, fault json.RawMessage) {
	for _, op := range c.Operations {
		if op.Namespace+"."+op.Name == call.Operation {
			return op.execute(ctx, call)
		}
	}
	return nil, "operation_unknown", json.RawMessage(`{}`) // it was called before this file was changed
}

func (op operationCommand) execute(ctx context.Context, call client.TakenCall) (output json.RawMessage, code string, fault json.RawMessage) {
	if op.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, op.Timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", op.Run)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // its children too
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = bytes.NewReader(call.Input)
	cmd.Env = append(os.Environ(), "HUB_CALL_ID="+call.Id.String(), fmt.Sprintf("HUB_CALL_ATTEMPT=%d", call.Attempt))
	var members map[string]any
	decoder := json.NewDecoder(bytes.NewReader(call.Input))
	decoder.UseNumber()
	if decoder.Decode(&members) == nil {
		for name, value := range members {
			switch value.(type) {
			case string, json.Number, bool:
				if text := fmt.Sprint(value); envName.MatchString(name) && !strings.ContainsRune(text, 0) {
					cmd.Env = append(cmd.Env, "INPUT_"+name+"="+text)
				}
			}
		}
	}
	stdout, stderr := &tail{limit: maxStdout, head: true}, &tail{limit: maxStderr}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		code = "timeout"
	case errors.As(err, &exit):
		code = fmt.Sprintf("exit_%d", exit.ExitCode())
	case err != nil:
		code = "not_run"
		_, _ = stderr.Write([]byte(err.Error()))
	case stdout.more:
		code = "output_too_large"
	case json.Valid(stdout.text):
		return stdout.text, "", nil
	default:
		output, _ = json.Marshal(map[string]string{"stdout": string(stdout.text)}) // strings always marshal
		return output, "", nil
	}
	fault, _ = json.Marshal(map[string]string{"stderr": string(stderr.text)})
	return nil, code, fault
}

// tail keeps the end of what is written, or its beginning.
type tail struct {
	limit int
	head  bool
	text  []byte
	more  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - t.limit; over > 0 {
		t.more = true
		if t.head {
			t.text = t.text[:t.limit]
		} else {
			t.text = append(t.text[:0], t.text[over:]...)
		}
	}
	return len(p), nil
}

func pointer[T any](value T) *T { return &value }

// given is nil for "".
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
