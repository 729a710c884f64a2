package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// spoke is a spoke as its program sees it.
type spoke struct {
	h     *hub
	c     caller
	ID    string
	Epoch int
	name  string
}

func (h *hub) newSpoke(t testing.TB, c caller, name string, operations ...string) *spoke {
	t.Helper()
	s := &spoke{h: h, c: c, name: name}
	s.register(t, `,"leaseSeconds":3600`)
	if operations != nil {
		s.put(t, operations...).wants(t, http.StatusOK)
	}
	return s
}

func (s *spoke) register(t testing.TB, more string) {
	t.Helper()
	s.h.as(t, s.c, "POST", "/v1/spokes", fmt.Sprintf(`{"name":%q%s}`, s.name, more)).wants(t, http.StatusOK).into(t, s)
}

func (s *spoke) put(t testing.TB, operations ...string) answer {
	t.Helper()
	return s.h.as(t, s.c, "PUT", "/v1/spokes/"+s.ID+"/operations", fmt.Sprintf(`{"epoch":%d,"operations":[%s]}`, s.Epoch, strings.Join(operations, ",")))
}

func (s *spoke) say(t testing.TB, what string) answer {
	t.Helper()
	return s.h.as(t, s.c, "POST", "/v1/spokes/"+s.ID+"/"+what, fmt.Sprintf(`{"epoch":%d}`, s.Epoch))
}

func (s *spoke) status(t testing.TB) (status string) {
	t.Helper()
	var got struct{ Status string }
	s.h.as(t, s.c, "GET", "/v1/spokes/"+s.ID, nil).wants(t, http.StatusOK).into(t, &got)
	return got.Status
}

const readFile = `{"namespace":"fs","name":"read","kind":"query"}`

// W06: who registers again is another connection, and the one before is refused whatever it says.
func TestW06_EpochsFenceStaleConnections(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	old := h.newSpoke(t, h.admin, "builder", readFile)
	fresh := h.newSpoke(t, h.admin, "builder")
	if fresh.ID != old.ID || fresh.Epoch != old.Epoch+1 {
		t.Fatalf("%+v, then %+v", old, fresh)
	}
	old.say(t, "heartbeat").refused(t, 409, "spoke_epoch_stale", "/epoch")
	old.say(t, "disconnect").refused(t, 409, "spoke_epoch_stale", "/epoch")
	old.put(t).refused(t, 409, "spoke_epoch_stale", "/epoch")
	fresh.say(t, "heartbeat").wants(t, 200)
	if n := h.count(t, "SELECT count(*) FROM operation_specs"); n != 1 {
		t.Errorf("%d operations after a stale put", n)
	}
	fresh.say(t, "disconnect").wants(t, 200)
	if n := h.count(t, "SELECT count(*) FROM operation_specs"); n != 0 {
		t.Errorf("C03: %d operations after the disconnection", n)
	}
	fresh.say(t, "heartbeat").refused(t, 409, "spoke_epoch_stale", "/epoch") // it does not come back by itself
	fresh.put(t, readFile).refused(t, 409, "spoke_epoch_stale", "/epoch")
	fresh.register(t, "")
	fresh.say(t, "heartbeat").wants(t, 200)
}

// W06: reconnecting is a grace period, in which operations stay and from which a heartbeat leads back.
func TestW06_LeaseAndGrace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	s := h.newSpoke(t, h.admin, "builder", readFile)
	sweep := func() { h.exec(t, "SELECT sweep_spokes(1000)") }
	sweep()
	if got := s.status(t); got != "connected" {
		t.Fatal(got)
	}
	h.exec(t, "UPDATE spokes SET lease_expires_at = now() - interval '1 second'")
	sweep()
	if got := s.status(t); got != "reconnecting" || h.count(t, "SELECT count(*) FROM operation_specs") != 1 {
		t.Fatal(got)
	}
	s.say(t, "heartbeat").wants(t, 200)
	if got := s.status(t); got != "connected" {
		t.Fatal(got)
	}
	h.exec(t, "UPDATE spokes SET lease_expires_at = now() - interval '1 hour'")
	sweep()
	sweep()
	if got := s.status(t); got != "disconnected" || h.count(t, "SELECT count(*) FROM operation_specs") != 0 {
		t.Fatal(got)
	}
	s.say(t, "heartbeat").refused(t, 409, "spoke_epoch_stale", "/epoch")
}

// A spoke is its account's.
func TestW06_NobodyElseSpeaksForASpoke(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	mine, other := h.newCaller(t, h.admin.org, "*"), h.newCaller(t, h.admin.org, "*")
	s := h.newSpoke(t, mine, "builder", readFile)
	stolen := *s
	stolen.c = other
	stolen.say(t, "heartbeat").refused(t, 403, "spoke_of_another_account")
	stolen.put(t).refused(t, 403, "spoke_of_another_account")
	h.as(t, other, "POST", "/v1/spokes", `{"name":"builder"}`).refused(t, 403, "spokes_by_their_account")
	s.say(t, "heartbeat").wants(t, 200)
	elsewhere := h.newCaller(t, uuid.Nil, "*")
	stolen.c = elsewhere
	stolen.say(t, "heartbeat").refused(t, 404, "spoke_not_found")
	h.as(t, elsewhere, "GET", "/v1/spokes/"+s.ID, nil).refused(t, 404, "spoke_not_found")
	h.as(t, elsewhere, "GET", "/v1/operations/fs.read", nil).refused(t, 404, "operation_not_found")
	stolen.c = h.admin
	stolen.say(t, "heartbeat").wants(t, 200)
}

// putOperations is the whole set, and says what changed; what did not change has its revision still.
func TestPutOperationsTellsWhatChanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	s := h.newSpoke(t, h.admin, "builder")
	diff := func(a answer) string {
		t.Helper()
		var d struct{ Created, Updated, Unchanged, Removed []string }
		a.wants(t, 200).into(t, &d)
		return strings.ReplaceAll(fmt.Sprint(d.Created, d.Updated, d.Unchanged, d.Removed), "."+s.ID, "")
	}
	a, b := `{"namespace":"fs","name":"read","kind":"query"}`, `{"namespace":"fs","name":"write.all","kind":"mutation","inputSchema":{"type":"object","required":["path"]},"redactPaths":["/a/*"],"annotations":{"destructiveHint":true}}`
	for _, step := range []struct {
		put  []string
		want string
	}{
		{[]string{a, b}, "[fs.read fs.write.all] [] [] []"},
		{[]string{b, a}, "[] [] [fs.read fs.write.all] []"},
		{[]string{b, strings.Replace(a, "query", "mutation", 1)}, "[] [fs.read] [fs.write.all] []"},
		{[]string{b}, "[] [] [fs.write.all] [fs.read]"},
		{nil, "[] [] [] [fs.write.all]"},
		{[]string{a, b}, "[fs.read fs.write.all] [] [] []"},
	} {
		if got := diff(s.put(t, step.put...)); got != step.want {
			t.Errorf("%v: %s, want %s", step.put, got, step.want)
		}
	}
	for _, name := range []string{"fs.write.all", "fs." + s.ID + ".write.all"} { // W04
		var got struct {
			QualifiedName string
			Revision      int
			InputSchema   struct{ Required []string }
			OutputSchema  *struct{}
			Annotations   map[string]bool
			RedactPaths   []string
		}
		h.do(t, "GET", "/v1/operations/"+name, nil).wants(t, 200).into(t, &got)
		if got.QualifiedName != "fs."+s.ID+".write.all" || len(got.InputSchema.Required) != 1 || got.OutputSchema != nil || !got.Annotations["destructiveHint"] || got.RedactPaths[0] != "/a/*" {
			t.Errorf("%+v", got)
		}
	}
	// Refused as a whole, with a pointer.
	for body, want := range map[string]struct {
		code    string
		pointer string
	}{
		a + "," + a: {"operation_twice", "/operations/1/name"},
		a + `,{"namespace":"hub","name":"x","kind":"query"}`:                                                      {"operation_specs_namespace_free", "/operations"},
		`{"namespace":"x","name":"y","kind":"query","outputSchema":{"type":"strnig"}}`:                            {"operation_schema_invalid", "/operations/0/outputSchema"},
		`{"namespace":"x","name":"y","kind":"query","inputSchema":{"$ref":"http://localhost/x"}}`:                 {"operation_schema_invalid", "/operations/0/inputSchema"},
		`{"namespace":"x","name":"` + s.ID + `.y","kind":"query"}`:                                                {"operation_specs_name_shape_check", "/operations"},
		`{"namespace":"` + strings.Repeat("x", 40) + `","name":"` + strings.Repeat("y", 51) + `","kind":"query"}`: {"operation_specs_qualified_name_length_check", "/operations"},
		`{"namespace":"x","name":"y","kind":"query","scopesAll":["platform:read"]}`:                               {"operation_specs_scopes_all_shape_check", "/operations"},
	} {
		s.put(t, body).refused(t, 422, want.code, want.pointer)
	}
	if got := h.count(t, "SELECT count(*) FROM operation_specs"); got != 2 {
		t.Errorf("%d operations after refusals", got)
	}
}

// Lists are by name, page by page.
func TestListSpokesAndOperations(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for i := range 5 {
		h.newSpoke(t, h.admin, fmt.Sprintf("s%d", i), readFile, strings.Replace(readFile, "read", "list", 1))
	}
	for path, want := range map[string]int{"/v1/spokes?limit=2": 5, "/v1/spokes?limit=2&status=connected": 5, "/v1/spokes?status=disconnected": 0, "/v1/operations?limit=3": 10, "/v1/operations?limit=3&name=read&namespace=fs": 5, "/v1/operations?kind=mutation": 0} {
		seen, cursor := map[string]bool{}, ""
		for {
			var page struct {
				Items      []struct{ ID string }
				NextCursor string
			}
			h.do(t, "GET", path+cursor, nil).wants(t, 200).into(t, &page)
			for _, item := range page.Items {
				seen[item.ID] = true
			}
			if page.NextCursor == "" {
				break
			}
			cursor = "&cursor=" + page.NextCursor
		}
		if len(seen) != want {
			t.Errorf("%s: %d, want %d", path, len(seen), want)
		}
	}
}
