package main

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// admin runs `hub admin` and returns what it prints on standard output; what it complains of is in the error.
func admin(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	out, err := hubCommand(t, env, append([]string{"admin"}, args...)...).Output()
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec documents it
		return string(out), &complaint{string(exit.Stderr)}
	}
	return string(out), err
}

type complaint struct{ text string }

func (c *complaint) Error() string { return c.text }

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// The operator gets in without a key, beside a hub that serves from its own database, and what they do works with the next
// request and is on record.
func TestAdminCommandBesideARunningHub(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	run := func(args ...string) string {
		t.Helper()
		out, err := admin(t, nil, append(args, "--data-dir", p.dir)...)
		if err != nil {
			t.Fatalf("hub admin %v: %v", args, err)
		}
		return out
	}
	out := run("create", "--name", "Ada Lovelace", "--email", "ada@example.com")
	id := regexp.MustCompile(`[0-9a-f-]{36}`).FindString(out)
	ada := p.with(lastLine(out))
	var me struct {
		Account         struct{ ID, DisplayName, AccessLevel string }
		Organization    struct{ Slug string }
		MembershipLevel string
	}
	ada.get(t, 200, "/v1/me", &me)
	if me.Account.ID != id || me.Account.DisplayName != "Ada Lovelace" || me.Account.AccessLevel != "admin" || me.MembershipLevel != "owner" || me.Organization.Slug != "default" {
		t.Errorf("made %+v (%s)", me, id)
	}
	if table := run("accounts"); !regexp.MustCompile(`default +owner +` + id + ` +human +admin +active +Ada Lovelace +ada@example.com`).MatchString(table) {
		t.Errorf("the table lacks her:\n%s", table)
	}

	// A lost key: by name, address and id. Her other keys stay.
	var keys []*process
	for _, who := range []string{"Ada Lovelace", "ADA@example.com", id} {
		keys = append(keys, p.with(lastLine(run("key", who))))
	}
	for _, key := range append(keys, ada) {
		key.get(t, 200, "/v1/me", nil)
	}

	// The break-glass, and the way back: not for the keys.
	if out := run("deactivate", "ada@example.com"); !strings.Contains(out, "is deactivated") {
		t.Error(out)
	}
	for _, key := range append(keys, ada) {
		key.get(t, 401, "/v1/me", nil)
	}
	run("activate", id)
	ada.get(t, 401, "/v1/me", nil)
	again := p.with(lastLine(run("key", id)))
	again.get(t, 200, "/v1/me", nil)

	if out := run("domains", "--add", "Bots.Example.com"); out != "alk.dev\nbots.example.com\n" {
		t.Errorf("domains: %q", out)
	}
	run("create", "--name", "admin") // the second one of this name
	for want, args := range map[string][]string{
		"(accounts_email_domain)":                      {"create", "--name", "x", "--email", "x@my.bots.example.com"},
		"(accounts_email_key)":                         {"create", "--name", "x", "--email", "ada@example.com"},
		"there is no organisation nowhere":             {"create", "--name", "x", "--org", "nowhere"},
		`there is no account "nobody"`:                 {"key", "nobody"},
		"is a member of no such organisation":          {"key", id, "--org", "nowhere"},
		`there is no account "system"`:                 {"deactivate", "system"},
		"(reserved_email_domains_shape_check)":         {"domains", "--add", "a b"},
		`required flag(s) "name" not set`:              {"create"},
		`2 accounts are called "admin"`:                {"key", "admin"},
		`accepts 1 arg(s), received 0`:                 {"deactivate"},
		`unknown command "nonsense" for "hub admin"`:   {"nonsense"},
		"there is no account \"01a20d2e\": hub admin ": {"activate", "01a20d2e"},
	} {
		if out, err := admin(t, nil, append(args, "--data-dir", p.dir)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("hub admin %v: %v %s, want %s", args, err, out, want)
		}
	}
	if out := run("domains", "--remove", "bots.example.com"); out != "alk.dev\n" {
		t.Errorf("domains: %q", out)
	}

	var log struct {
		Items []struct{ Action, ActorSource, OwnerID string }
	}
	p.get(t, 200, "/v1/audit-logs?platform=true", &log)
	var actions []string
	for _, entry := range log.Items {
		if entry.ActorSource == "admin" {
			actions = append(actions, entry.Action)
		}
	}
	if got := strings.Join(actions, " "); got != "account.create account.activate account.deactivate account.create" {
		t.Errorf("on record: %s", got)
	}
	p.stop(t)
	// And beside no hub: the database is started for the command.
	if table := run("accounts"); !strings.Contains(table, id) {
		t.Errorf("without a hub:\n%s", table)
	}
}

// With a database of one's own, an empty one gets its first account; a schema that is not this program's is refused.
func TestAdminCommandWithDatabaseURL(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + pgtest.Empty(t)}
	if _, err := admin(t, env, "accounts"); err == nil || !strings.Contains(err.Error(), "hub migrate up") {
		t.Errorf("without a schema: %v", err)
	}
	if out, err := hubCommand(t, env, "migrate", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := admin(t, env, "create", "--name", "First", "--email", "first@example.com", "--org", "acme")
	if err != nil {
		t.Fatal(err)
	}
	p := startHub(t, dataDir(t), env...).with(lastLine(out))
	var me struct {
		Account      struct{ Email string }
		Organization struct{ Slug string }
	}
	p.get(t, 200, "/v1/me", &me)
	if me.Account.Email != "first@example.com" || me.Organization.Slug != "acme" {
		t.Errorf("made %+v", me)
	}
}

// with is the same hub, asked with another key.
func (p *process) with(key string) *process { return &process{url: p.url, key: key} }

func (p *process) get(t *testing.T, want int, path string, into any) {
	t.Helper()
	status, answer := p.send("GET", path, nil)
	if status != want {
		t.Fatalf("GET %s: %d %s, want %d", path, status, answer, want)
	}
	if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			t.Fatal(err)
		}
	}
}
