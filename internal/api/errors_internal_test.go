package api

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/labstack/echo/v4"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

func TestX02_EveryRuleHasAnAnswer(t *testing.T) {
	t.Parallel()
	for _, name := range db.Rules {
		r, ok := ruleNamed(name)
		if !ok {
			t.Errorf("the database's rule %s has no answer: add it to rules in problem.go", name)
			continue
		}
		if r.status < 400 || r.status > 499 {
			t.Errorf("%s: status %d", name, r.status)
		}
		checkSentence(t, name, r.detail)
		if r.pointer != "" && !strings.HasPrefix(r.pointer, "/") && !strings.HasPrefix(r.pointer, "header:") && !strings.HasPrefix(r.pointer, "query:") {
			t.Errorf("%s: the pointer %q", name, r.pointer)
		}
		// A foreign key: a reference to nothing cannot be, what is referred to stands against its deletion.
		if strings.HasSuffix(name, "_fkey_in_use") && r.status != conflict {
			t.Errorf("%s: status %d, want 409", name, r.status)
		}
		if strings.HasSuffix(name, "_fkey") {
			if !slices.Contains(db.Rules, name+"_in_use") {
				t.Errorf("%s has no twin for deletions", name)
			}
			if r.status != invalid && name != db.OrganizationsOwnerIsMemberFkey {
				t.Errorf("%s: status %d, want 422", name, r.status)
			}
		}
		if strings.HasSuffix(name, "_check") && r.status != invalid {
			t.Errorf("%s: status %d, want 422", name, r.status)
		}
		if strings.HasSuffix(name, "_key") && r.status != conflict {
			t.Errorf("%s: status %d, want 409", name, r.status)
		}
	}
}

func checkSentence(t *testing.T, name, sentence string) {
	t.Helper()
	if !strings.HasSuffix(sentence, ".") || strings.HasSuffix(sentence, "..") || strings.TrimSpace(sentence) != sentence || len(sentence) < 10 {
		t.Errorf("%s: %q is no sentence", name, sentence)
	}
	first := []rune(sentence)[0]
	if !unicode.IsUpper(first) && !strings.HasPrefix(sentence, "data ") && !strings.HasPrefix(sentence, "metadata ") {
		t.Errorf("%s: %q does not begin as a sentence", name, sentence)
	}
}

// Nothing stands in the table that the database does not have, asked afresh and not by the generated list.
func TestX02_NoAnswerIsStale(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	exists := func(name string) (found bool) {
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_constraint WHERE conname = $1)
			OR EXISTS (SELECT FROM pg_class WHERE relname = $1 AND relkind = 'i')
			OR EXISTS (SELECT FROM pg_trigger WHERE tgname = $1)
			OR EXISTS (SELECT FROM pg_proc WHERE prosrc LIKE '%raise_rule(''' || $1 || '''%')`, name).Scan(&found)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if exists("projects_nonsense_check") || !exists("projects_slug_key") || !exists("accounts_email_key") || !exists("unauthenticated") || !exists("sessions_parent_acyclic") {
		t.Fatal("this test cannot tell what exists")
	}
	for name := range rules {
		key, inUse := strings.CutSuffix(name, "_in_use")
		if !exists(key) || inUse && !strings.HasSuffix(key, "_fkey") {
			t.Errorf("the answer to %s is stale: the database has no such rule", name)
		}
		if !slices.Contains(db.Rules, name) {
			t.Errorf("%s is not in the generated rules", name)
		}
	}
	for _, name := range db.Rules {
		if !exists(strings.TrimSuffix(name, "_in_use")) {
			t.Errorf("the generated rule %s is stale", name)
		}
	}
	for i, family := range ruleFamilies {
		used := family.suffix == "_required"
		for _, name := range db.Rules {
			if _, own := rules[name]; !own && strings.HasSuffix(name, family.suffix) {
				used = true
			}
		}
		if !used {
			t.Errorf("no rule is of the family %s", family.suffix)
		}
		for _, other := range ruleFamilies[:i] {
			if strings.HasSuffix(family.suffix, other.suffix) {
				t.Errorf("the family %s is hidden by %s", family.suffix, other.suffix)
			}
		}
	}
}

// The server's own codes: each is a sentence with a status, is used somewhere, and is not a rule's name.
func TestX02_OwnCodes(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			name, ok := call.Fun.(*ast.Ident)
			literal, isLiteral := call.Args[0].(*ast.BasicLit)
			if !ok || !isLiteral || literal.Kind != token.STRING {
				return true
			}
			code, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			switch name.Name {
			case "notFound", "missing":
				code += "_not_found"
			case "refuse":
			default:
				return true
			}
			used[code] = true
			if _, ok := codes[code]; !ok {
				t.Errorf("%s: the code %q is not in codes", file, code)
			}
			return true
		})
	}
	if len(used) < 10 {
		t.Fatalf("only %d codes found in the sources", len(used))
	}
	for code, r := range codes {
		if !used[code] {
			t.Errorf("the code %q is used nowhere", code)
		}
		if _, ok := ruleNamed(code); ok {
			t.Errorf("the code %q is a rule's name too", code)
		}
		if r.status < 400 || r.status > 599 {
			t.Errorf("%s: status %d", code, r.status)
		}
		checkSentence(t, code, r.detail)
	}
	all := Codes()
	for i, c := range all {
		if i > 0 && all[i-1].Name >= c.Name {
			t.Errorf("%s is listed behind %s", c.Name, all[i-1].Name)
		}
	}
	if len(all) != len(codes)+len(db.Rules) {
		t.Errorf("%d codes are listed, there are %d and %d", len(all), len(codes), len(db.Rules))
	}
}

// Which error becomes which answer.
func TestErrorsBecomeProblems(t *testing.T) {
	t.Parallel()
	op := &operation{scopes: []string{"a:read", "b:write"}}
	request := func(method string) *http.Request {
		return httptest.NewRequestWithContext(context.WithValue(t.Context(), operationKey{}, op), method, "/x", nil)
	}
	pg := func(code, constraint string) error {
		return &pgconn.PgError{Code: code, ConstraintName: constraint, Message: "secret message", Detail: "secret detail", Hint: "secret hint", Where: "secret where", TableName: "projects", ColumnName: "name"}
	}
	for _, c := range []struct {
		name   string
		err    error
		method string
		status int
		code   string
		faults string
	}{
		{"own", refuse("invalid_cursor"), "GET", 400, "invalid_cursor", ""},
		{"own, wrapped", fmt.Errorf("x: %w", notFound("project")), "GET", 404, "project_not_found", ""},
		{"own, among others", fmt.Errorf("%w: %w", refuse("storage_unavailable"), errors.New("disk")), "GET", 503, "storage_unavailable", ""},
		{"own, too late", fmt.Errorf("%w: %w", context.DeadlineExceeded, notFound("project")), "GET", 404, "project_not_found", ""},
		{"too much", &http.MaxBytesError{Limit: 5}, "POST", 413, "body_too_large", ""},
		{"too much, wrapped", fmt.Errorf("read JSON: %w", &http.MaxBytesError{Limit: 5}), "POST", 413, "body_too_large", ""},
		{"JSON", &pgjson.Error{Pointer: "/a", Message: "is wrong"}, "POST", 400, "invalid_json", "/a"},
		{"unique", pg("23505", db.ProjectsSlugKey), "POST", 409, db.ProjectsSlugKey, "/slug"},
		{"check", pg("23514", db.ProjectsMetadataCheck), "PATCH", 422, db.ProjectsMetadataCheck, "/metadata"},
		{"reference to nothing", pg("23503", db.SessionsProjectIDFkey), "POST", 422, db.SessionsProjectIDFkey, "/projectId"},
		{"referred to", pg("23503", db.SessionsProjectIDFkey), "DELETE", 409, db.SessionsProjectIDFkeyInUse, ""},
		{"referred to, RESTRICT of PostgreSQL 18", pg("23001", db.SessionsProjectIDFkey), "DELETE", 409, db.SessionsProjectIDFkeyInUse, ""},
		{"not null", pg("23502", ""), "POST", 422, "projects_name_required", ""},
		{"a rule that raises", pg("23514", db.SessionsRunStateTransition), "PATCH", 409, db.SessionsRunStateTransition, "/runState"},
		{"unauthenticated", pg("28000", db.Unauthenticated), "GET", 401, "unauthenticated", ""},
		{"scope", pg("42501", db.InsufficientScope), "GET", 403, "insufficient_scope", ""},
		{"privilege", pg("42501", ""), "GET", 403, "not_permitted", ""},
		{"a value", pg("22021", ""), "GET", 400, "invalid_value", ""},
		{"a value of jsonb", pg("22P05", ""), "GET", 400, "invalid_value", ""},
		{"too complex", pg("54001", ""), "POST", 413, "value_too_large", ""},
		{"serialization", pg("40001", ""), "POST", 503, "try_again", ""},
		{"deadlock", pg("40P01", ""), "POST", 503, "try_again", ""},
		{"lock timeout", pg("55P03", ""), "POST", 503, "try_again", ""},
		{"statement timeout", pg("57014", ""), "POST", 503, "timeout", ""},
		{"shut down", pg("57P01", ""), "POST", 503, "database_unavailable", ""},
		{"starting", pg("57P03", ""), "POST", 503, "database_unavailable", ""},
		{"disk full", pg("53100", ""), "POST", 503, "database_unavailable", ""},
		{"too many", pg("53300", ""), "POST", 503, "database_unavailable", ""},
		{"connection", pg("08006", ""), "POST", 503, "database_unavailable", ""},
		{"an unknown rule", pg("23514", "projects_unknown_check"), "POST", 500, "internal", ""},
		{"a bug in a function", pg("P0001", ""), "POST", 500, "internal", ""},
		{"no table", pg("42P01", ""), "POST", 500, "internal", ""},
		{"no row", pgx.ErrNoRows, "GET", 404, "route_not_found", ""},
		{"deadline", context.DeadlineExceeded, "GET", 503, "timeout", ""},
		{"cancelled", fmt.Errorf("timeout: %w", context.Canceled), "GET", 503, "timeout", ""},
		{"cancelled, and then something else", fmt.Errorf("%w: %w", context.Canceled, errors.New("conn closed")), "GET", 503, "timeout", ""},
		{"cancelled, and then PostgreSQL said so", fmt.Errorf("%w: %w", context.Canceled, pg("XX000", "")), "GET", 503, "timeout", ""},
		{"network", &net.OpError{Op: "dial", Err: errors.New("refused")}, "GET", 503, "database_unavailable", ""},
		{"no such route", echo.ErrNotFound, "GET", 404, "route_not_found", ""},
		{"no such method", echo.ErrMethodNotAllowed, "PUT", 405, "method_not_allowed", ""},
		{"another of echo's", echo.NewHTTPError(http.StatusBadRequest, "secret"), "GET", 400, "invalid_request", ""},
		{"anything", errors.New("secret"), "GET", 500, "internal", ""},
		{"panic", errors.New("panic: secret"), "GET", 500, "internal", ""},
	} {
		p := asProblem(request(c.method), c.err)
		var faults []string
		for _, f := range p.Errors {
			if f.Pointer != "" {
				faults = append(faults, f.Pointer)
			}
			if strings.Contains(f.Message, "secret") {
				t.Errorf("%s: %q", c.name, f.Message)
			}
		}
		if p.Status != c.status || p.Code != c.code || strings.Join(faults, " ") != c.faults {
			t.Errorf("%s: %d %s %v, want %d %s %s", c.name, p.Status, p.Code, faults, c.status, c.code, c.faults)
		}
		checkSentence(t, c.name, p.Detail)
		if strings.Contains(p.Detail, "secret") {
			t.Errorf("%s: %q", c.name, p.Detail)
		}
		if c.code == "insufficient_scope" && !strings.Contains(p.Detail, "a:read, b:write") {
			t.Errorf("%s: %q", c.name, p.Detail)
		}
		if text := logged(c.err); strings.Contains(text, "secret detail") || strings.Contains(text, "secret hint") || strings.Contains(text, "secret where") {
			t.Errorf("%s: the log says %q", c.name, text)
		}
	}
}

// A connection that PostgreSQL refuses is not the request's fault, whatever the reason that it gives.
func TestRefusedConnectionsAreUnavailability(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	for _, spoil := range []func(*pgx.ConnConfig){
		func(c *pgx.ConnConfig) { c.Database = "nothing_of_that_name" },
		func(c *pgx.ConnConfig) { c.User = "nobody" },
		func(c *pgx.ConnConfig) { c.Database = "template0" },
		func(c *pgx.ConnConfig) { c.Host, c.Fallbacks = "/nowhere", nil },
	} {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		spoil(config)
		_, err = pgx.ConnectConfig(t.Context(), config)
		if err == nil {
			t.Fatal("connected")
		}
		if p := asProblem(httptest.NewRequestWithContext(t.Context(), "GET", "/x", nil), err); p.Status != 503 || p.Code != "database_unavailable" {
			t.Errorf("%v: %d %s", err, p.Status, p.Code)
		}
	}
}

// What PostgreSQL really says when a column lacks its value.
func TestX02_RequiredColumns(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	conn, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "INSERT INTO projects (org_id, slug, name) VALUES (gen_random_uuid(), 'a', NULL)")
	if p := asProblem(httptest.NewRequestWithContext(t.Context(), "POST", "/x", nil), err); p.Status != 422 || p.Code != "projects_name_required" {
		t.Errorf("%v: %d %s", err, p.Status, p.Code)
	}
}

func TestMergeValue(t *testing.T) {
	t.Parallel()
	// The examples of RFC 7396, appendix A, whose target and patch are objects or not.
	for _, c := range []struct{ target, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{` {"a" : 1e2 } `, ` {"b" : [ null, {"c":null} ] , "d": null } `, `{"a":1e2,"b":[null,{"c":null}]}`},
	} {
		if got, err := mergeValue([]byte(c.target), []byte(c.patch)); err != nil || string(got) != c.want {
			t.Errorf("%s and %s: %s, %v, want %s", c.target, c.patch, got, err, c.want)
		}
	}
}

func TestHarmlessRequestIDs(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"a": true, "0": true, "a-B_9.z": true, strings.Repeat("a", 100): true,
		"": false, strings.Repeat("a", 101): false, "a b": false, "a\n": false, "é": false, `a"`: false, "a/b": false, "<a>": false, "a\x00": false, "a;b": false, "{}": false, "\xff": false,
	} {
		if isHarmlessID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}
