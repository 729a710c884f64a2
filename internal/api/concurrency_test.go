package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Many writers of one session: nothing is lost, and each writer's messages stand in the order in which they were written (C02).
func TestC02_ManyWritersOfOneSession(t *testing.T) {
	t.Parallel()
	const writers, calls = 16, 12
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	acknowledged := make([][]string, writers)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for c := range calls {
				a := h.do(t, "POST", path, fmt.Sprintf(`{"messages":[
					{"role":"user","data":{"n":"%[1]d %[2]d a"},"parts":[{"type":"x","data":{"n":"%[1]d %[2]d a 0"}},{"type":"x","data":{"n":"%[1]d %[2]d a 1"}}]},
					{"role":"assistant","data":{"n":"%[1]d %[2]d b"}}]}`, w, c)).wants(t, 201)
				for _, m := range a.messages(t) {
					acknowledged[w] = append(acknowledged[w], m.ID)
				}
			}
		})
	}
	// Meanwhile a reader follows: what it has read stays as it was, for nothing is ever put before it.
	stop := make(chan struct{})
	var follower []string
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if ids := h.pages(t, h.admin, path, "id", 60); len(ids) > len(follower) {
				if !slices.Equal(ids[:len(follower)], follower) {
					t.Error("a message was put before one that was read already")
					return
				}
				follower = ids
			}
		}
	})
	group.Wait()
	close(stop)
	reading.Wait()

	place := map[string]int{}
	all := h.pages(t, h.admin, path, "id", 150)
	for i, id := range all {
		place[id] = i
	}
	if !slices.IsSorted(all) || len(place) != writers*calls*2 || len(all) != len(place) {
		t.Errorf("%d messages, %d ids, want %d, ascending", len(all), len(place), writers*calls*2)
	}
	for w, ids := range acknowledged {
		for i, id := range ids {
			if at, ok := place[id]; !ok || i > 0 && at <= place[ids[i-1]] {
				t.Errorf("writer %d: message %d is at %d (%v), the one before it at %d", w, i, at, ok, place[ids[max(0, i-1)]])
			}
		}
		// The messages of one call stand together.
		for i := 0; i+1 < len(ids); i += 2 {
			if place[ids[i+1]] != place[ids[i]]+1 {
				t.Errorf("writer %d: another writer's message stands within a call's", w)
			}
		}
	}
	if n := h.count(t, "SELECT count(*) FROM parts"); n != writers*calls*2 {
		t.Errorf("%d parts, want %d", n, writers*calls*2)
	}
}

// With the same If-Match exactly one of many changes goes through, whatever they change.
func TestIfMatchLetsOneThrough(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for name, body := range map[string]string{"title": `{"title":"%d"}`, "data": `{"data":{"n":%d}}`, "run state": `{"runState":"running","metadata":{"_n":{"n":%d}}}`} {
		t.Run(name, func(t *testing.T) {
			path := "/v1/sessions/" + h.newSession(t)
			for revision := 1; revision <= 5; revision++ {
				counts := h.race(t, 8, func(i int) int {
					return h.do(t, "PATCH", path, fmt.Sprintf(body, revision*100+i), "If-Match", fmt.Sprintf(`"%d"`, revision)).status
				})
				if counts[200] != 1 || counts[412] != 7 {
					t.Fatalf("revision %d: %v", revision, counts)
				}
			}
		})
	}
	// One creation of a slug, one deletion.
	project := h.newProject(t, "p")
	if counts := h.race(t, 8, func(int) int { return h.do(t, "POST", "/v1/projects", `{"slug":"once","name":"n"}`).status }); counts[201] != 1 || counts[409] != 7 {
		t.Errorf("one slug: %v", counts)
	}
	if counts := h.race(t, 8, func(int) int {
		return h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","slug":"once"}`).status
	}); counts[201] != 1 || counts[409] != 7 {
		t.Errorf("one session's slug: %v", counts)
	}
	path := "/v1/sessions/" + h.newSession(t)
	if counts := h.race(t, 8, func(int) int { return h.do(t, "DELETE", path, nil).status }); counts[204] != 1 || counts[404] != 7 {
		t.Errorf("one deletion: %v", counts)
	}
}

// race runs fn at once in n goroutines and counts what they return.
func (h *hub) race(t testing.TB, n int, fn func(i int) int) map[int]int {
	t.Helper()
	var mu sync.Mutex
	var group sync.WaitGroup
	counts := map[int]int{}
	start := make(chan struct{})
	for i := range n {
		group.Go(func() {
			<-start
			status := fn(i)
			mu.Lock()
			defer mu.Unlock()
			counts[status]++
		})
	}
	close(start)
	group.Wait()
	return counts
}

// Transitions that conflict: what follows "ended" is refused, what came before it is not, and the two are never both so.
func TestX10_RunStatesRace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for range 15 {
		path := "/v1/sessions/" + h.newSession(t)
		var mu sync.Mutex
		revisions := map[string]int{} // of the state that an answer shows
		counts := h.race(t, 6, func(i int) int {
			state := []string{"ended", "running", "waiting"}[i%3]
			a := h.do(t, "PATCH", path, `{"runState":"`+state+`","metadata":{"_n":{"n":`+fmt.Sprint(i)+`}}}`)
			if a.status == 200 {
				mu.Lock()
				defer mu.Unlock()
				revisions[fmt.Sprint(i)+state] = a.session(t).Revision
			} else {
				a.refused(t, 409, "sessions_run_state_transition", "/runState")
			}
			return a.status
		})
		final := h.do(t, "GET", path, nil).session(t)
		if final.RunState != "ended" || counts[200]+counts[409] != 6 || final.Revision != 1+counts[200] {
			t.Fatalf("%+v after %v", final, counts)
		}
		ended := min(orMax(revisions["0ended"]), orMax(revisions["3ended"]))
		for who, revision := range revisions {
			if !strings.HasSuffix(who, "ended") && revision > ended {
				t.Errorf("%s at revision %d, after the end at %d", who, revision, ended)
			}
		}
	}
}

func orMax(n int) int {
	if n == 0 {
		return 1 << 30
	}
	return n
}

// Merge patches of different fields at the same moment: none is lost, in data (merged in Go, under a lock) and metadata (in SQL).
func TestConcurrentPatchesAreAllKept(t *testing.T) {
	t.Parallel()
	const writers, each = 8, 6
	h := newHub(t)
	session, project := "/v1/sessions/"+h.newSession(t), "/v1/projects/"+h.newProject(t, "p")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				key := fmt.Sprintf("_w%d_%d", w, i)
				for _, path := range []string{session, project} {
					h.do(t, "PATCH", path, `{"data":{"`+key+`":1e2}}`).wants(t, 200)
					h.do(t, "PATCH", path, `{"metadata":{"`+key+`":{}}}`).wants(t, 200)
				}
			}
		})
	}
	group.Wait()
	for _, path := range []string{session, project} {
		var got struct {
			Data, Metadata map[string]json.RawMessage
			Revision       int
		}
		h.do(t, "GET", path, nil).into(t, &got)
		if len(got.Data) != writers*each || len(got.Metadata) != writers*each || got.Revision != 1+2*writers*each {
			t.Errorf("%s: %d fields of data, %d of metadata, revision %d", path, len(got.Data), len(got.Metadata), got.Revision)
		}
	}
}
