package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type searchPage struct {
	Items []struct {
		Session sessionBody
		Rank    float64
		Matches int
		Best    []struct {
			MessageID, PartID, Type *string
			CreatedAt               string
			Snippet                 []struct {
				Text  string
				Match bool
			}
		}
	}
	NextCursor string
}

func (h *hub) search(t testing.TB, c caller, query string) (p searchPage) {
	t.Helper()
	h.as(t, c, "GET", "/v1/sessions/search?q="+query, nil).wants(t, 200).into(t, &p)
	return p
}

// titles of what is found, in order.
func (p searchPage) titles() []string {
	var all []string
	for _, item := range p.Items {
		all = append(all, item.Session.Title)
	}
	return all
}

// marked is a snippet with brackets around the matches.
func (p searchPage) marked(item, match int) string {
	var b strings.Builder
	for _, piece := range p.Items[item].Best[match].Snippet {
		if piece.Match {
			b.WriteString("[" + piece.Text + "]")
		} else {
			b.WriteString(piece.Text)
		}
	}
	return b.String()
}

func (h *hub) newNamedSession(t testing.TB, project, title string, texts ...string) string {
	t.Helper()
	id := h.do(t, "POST", "/v1/sessions", map[string]string{"projectId": project, "title": title}).wants(t, 201).id(t)
	for _, text := range texts {
		h.do(t, "POST", "/v1/sessions/"+id+"/messages", map[string]any{"messages": []any{map[string]any{"role": "user", "parts": []any{map[string]any{"type": "text", "data": map[string]string{"text": text}}}}}}).wants(t, 201)
	}
	return id
}

func TestSearchSessions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project, second := h.newProject(t, "p"), h.newProject(t, "q")
	one := h.newNamedSession(t, project, "Fix the discount", "The discount is off by one.", "It is in <b>src/app/discount.ts</b>, I think.", "Unrelated.", "discount discount", "a discount more")
	h.newNamedSession(t, project, "Rounding", "One mention of a discounted price, far from the rest: "+strings.Repeat("filler ", 50))
	h.newNamedSession(t, second, "検索", "全文検索の設計を確認する")

	p := h.search(t, h.admin, "discounts")
	if got := p.titles(); !slices.Equal(got, []string{"Fix the discount", "Rounding"}) || p.Items[0].Matches != 5 || len(p.Items[0].Best) != 3 || p.Items[0].Rank <= p.Items[1].Rank {
		t.Errorf("%+v", p)
	}
	if first := p.Items[0].Best[0]; first.PartID != nil || first.MessageID != nil || first.Type != nil || p.marked(0, 0) != "Fix the [discount]" {
		t.Errorf("the title: %+v", first)
	}
	if b := p.Items[1].Best[0]; value(b.Type) != "text" || b.PartID == nil || b.MessageID == nil || !strings.HasPrefix(p.marked(1, 0), "One mention of a [discounted] price, far") {
		t.Errorf("%s", p.marked(1, 0))
	}
	// What is found is where it says.
	b := p.Items[1].Best[0]
	if m := h.do(t, "GET", "/v1/sessions/"+p.Items[1].Session.ID+"/messages/"+*b.MessageID, nil).wants(t, 200); !strings.Contains(string(m.body), *b.PartID) {
		t.Errorf("%s", m.body)
	}
	// Punctuation comes back as it was, markup too: snippets are text.
	if p := h.search(t, h.admin, "app/discount.ts"); len(p.Items) != 1 || p.marked(0, 0) != "It is in <b>src/[app]/[discount].[ts]</b>, I think" {
		t.Errorf("%+v", p)
	}
	if p := h.search(t, h.admin, "%E6%A4%9C%E7%B4%A2"); len(p.Items) != 1 || p.Items[0].Matches != 2 || p.marked(0, 0) != "[検索]" || p.marked(0, 1) != "全文[検索]の設計を確認する" {
		t.Errorf("%+v %s", p, p.marked(0, 1))
	}
	for query, want := range map[string]string{
		"discount&projectId=" + second:                      "",
		"discount&projectId=" + project + "&archived=false": "Fix the discount|Rounding",
		"discount&archived=true":                            "",
		"discount&accountId=" + h.admin.account.String():    "Fix the discount|Rounding",
		"discount&accountId=" + uuid.NewString():            "",
		"discount&roleName=build":                           "",
		"discount&since=2020-01-01T00:00:00Z":               "Fix the discount|Rounding",
		"discount&until=2020-01-01T00:00:00Z":               "",
		"discount&since=2999-01-01T00:00:00%2B02:00":        "",
		"discount+-price":                                   "Fix the discount",
		"%22off+by+one%22":                                  "Fix the discount",
		"%22by+off+one%22":                                  "",
		"nothing+or+rounding":                               "Rounding",
		"round*":                                            "Rounding",
		"no+such+words":                                     "",
	} {
		if got := strings.Join(h.search(t, h.admin, query).titles(), "|"); got != want {
			t.Errorf("%s finds %q, want %q", query, got, want)
		}
	}

	// Page by page, nothing twice and nothing left out.
	var ids []string
	for n := range 23 {
		ids = append(ids, h.newNamedSession(t, second, fmt.Sprintf("page %d", n%5), strings.Repeat("needle ", n%7+1)))
	}
	var found []string
	last := 99.0
	for cursor := ""; ; {
		p := h.search(t, h.admin, "needle&limit=4"+cursor)
		for _, item := range p.Items {
			found = append(found, item.Session.ID)
			if item.Rank > last {
				t.Error("out of order")
			}
			last = item.Rank
		}
		if p.NextCursor == "" {
			break
		}
		cursor = "&cursor=" + p.NextCursor
	}
	slices.Sort(ids)
	slices.Sort(found)
	if !slices.Equal(found, ids) {
		t.Errorf("%d of %d found", len(found), len(ids))
	}

	h.do(t, "GET", "/v1/sessions/search", nil).refused(t, 400, "invalid_request", "query:q")
	for _, bad := range []string{"...", "-word", "%22%22", "or"} {
		h.do(t, "GET", "/v1/sessions/search?q="+bad, nil).refused(t, 400, "search_query_empty", "query:q")
	}
	h.do(t, "GET", "/v1/sessions/search?q=x&limit=51&since=yesterday", nil).refused(t, 400, "invalid_request", "query:limit", "query:since")
	h.do(t, "GET", "/v1/sessions/search?q=a%00", nil).refused(t, 400, "invalid_request", "query:q")
	h.do(t, "GET", "/v1/sessions/search?q="+strings.Repeat("a+", 249)+"a", nil).wants(t, 200)
	for _, odd := range []string{"'", "''%20a", "a:*", "!a%26", "(a", "a%5C", "a%3C-%3Eb", "%22a", "*", "a**", "-", "--a%20b", "%F0%9F%8E%89", "%E2%80%8D", "a%02b", "or%20or%20a", "a%20-", "%22-a%22%20b*"} {
		if a := h.do(t, "GET", "/v1/sessions/search?q="+odd, nil); a.status != 200 && a.status != 400 {
			t.Errorf("%s: %d %s", odd, a.status, a.body)
		}
	}

	// What is deleted or another's is not found.
	h.do(t, "DELETE", "/v1/sessions/"+one, nil).wants(t, 204)
	if got := h.search(t, h.admin, "discount").titles(); !slices.Equal(got, []string{"Rounding"}) {
		t.Errorf("%v", got)
	}
	if got := h.search(t, h.newCaller(t, uuid.Nil, "*"), "discount").titles(); len(got) != 0 {
		t.Errorf("a stranger finds %v", got)
	}
}

// Words of every real session are found in it: of texts, tool input and output, errors, file names.
func TestSearchFindsRealSessions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for _, file := range realExports(t) {
		h.importFile(t, h.admin, project, file)
	}
	for query, types := range map[string]string{
		"priceCents":                 "text tool",
		"%22File+not+found%22":       "tool",
		"pricing-table.js":           "tool",
		"docs/notes.md":              "text file tool",
		"%22Audit+error+handling%22": "subtask tool text",
		"overloaded":                 "retry text tool",
		"explore":                    "agent text tool",
	} {
		p := h.search(t, h.admin, query)
		if len(p.Items) == 0 {
			t.Errorf("%s is found nowhere", query)
			continue
		}
		for i, item := range p.Items {
			for j, b := range item.Best {
				if b.Type != nil && !slices.Contains(strings.Fields(types), *b.Type) {
					t.Errorf("%s is found in a part of type %s", query, *b.Type)
				}
				if got := p.marked(i, j); !strings.Contains(got, "[") {
					t.Errorf("%s: no match in the snippet %q", query, got)
				}
			}
		}
	}
}
