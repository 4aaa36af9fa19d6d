package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// accountings are both ways to count, with limits that leave room for three containers.
var accountings = map[string]string{"usage": "quota: {accounting: usage}\n", "committed": "quota: {accounting: committed}\n"}

const (
	forThree = "{memory: 32m, memory_swap: 32m, aggregate: {memory_max: 110m}}"
	forMany  = "{memory: 32m, memory_swap: 32m, aggregate: {memory_max: 4g}}"
)

// TestTwentyAtOnceWithRoomForThree runs twenty containers at once, each with two volumes
// and a bind: three get in, and what was refused leaves nothing behind.
func TestTwentyAtOnceWithRoomForThree(t *testing.T) {
	for name, accounting := range accountings {
		t.Run(name, func(t *testing.T) {
			homes, err := os.MkdirTemp("", "homes")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(homes) })
			mine := filepath.Join(homes, "alice")
			if err := os.Mkdir(mine, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(homes, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(mine, int(lab.Alice.UID), int(lab.Alice.UID)); err != nil {
				t.Fatal(err)
			}
			d := newDesk(t, theEngine, forThree, accounting+"profile: homes\nprofiles: {homes: {from: confined, binds: [{path: "+homes+"}]}}\n")
			prefix := "crowd-" + name + "-"
			for i := range 20 {
				tidy(t, fmt.Sprint(prefix, i))
			}
			before := d.leftovers()
			var mu sync.Mutex
			var got, not []string
			atOnceAll(20, func(i int) {
				out, err := d.as(lab.Alice, "run", "-d", "--name", fmt.Sprint(prefix, i), "-v", fmt.Sprint(prefix, i, ":/named"), "-v", "/anonymous",
					"-v", fmt.Sprintf("%s/%d:/bound", mine, i), lab.Image, "sleep", "100000")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got = append(got, out)
				} else {
					not = append(not, out)
				}
			})
			if len(got) != 3 || d.running() != 3 || len(d.all()) != 3 {
				t.Errorf("%d were let through, and there are %d, of which %d run", len(got), len(d.all()), d.running())
			}
			for _, out := range not {
				if !isMemoryRefusal(answer{status: http.StatusForbidden, body: out}) {
					t.Errorf("refused with %s", out)
				}
			}
			after := d.leftovers()
			for what, n := range map[string]int{"volumes": 6, "networks": 0, "staged binds": 3} {
				if more := after[what] - before[what]; more != n {
					t.Errorf("%s: %d more, want %d", what, more, n)
				}
			}
			// What was stopped and removed makes room again, for as many.
			for _, id := range got {
				d.must(lab.Alice, "rm", "-f", "-v", id)
			}
			won := 0
			atOnceAll(20, func(int) {
				id, made := d.create(lab.Alice, "")
				if made.status == http.StatusCreated {
					mu.Lock()
					won++
					mu.Unlock()
					if s := d.start(lab.Alice, id); s.status != http.StatusNoContent {
						t.Errorf("start: %d %s", s.status, s.body)
					}
				} else if !isMemoryRefusal(made) {
					t.Errorf("create: %d %s", made.status, made.body)
				}
			})
			if won != 3 || d.running() != 3 {
				t.Errorf("%d creates were let through, and %d run", won, d.running())
			}
		})
	}
}

// leftovers counts what requests leave behind, beside containers.
func (d *desk) leftovers() map[string]int {
	d.t.Helper()
	lines := func(args ...string) int {
		out, err := d.e.Docker(limit(d.t), args...)
		if err != nil {
			d.t.Fatal(err)
		}
		return len(strings.Fields(out))
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Fatal(err)
	}
	return map[string]int{
		"volumes": lines("volume", "ls", "-q"), "networks": lines("network", "ls", "-q"),
		"staged binds": strings.Count(string(text), " "+d.p.Dir+"/"),
	}
}

// TestTwentyStartsWithRoomForThree starts twenty containers at once that ran before, half
// of them by restart.
func TestTwentyStartsWithRoomForThree(t *testing.T) {
	for name, accounting := range accountings {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, theEngine, forMany, accounting)
			var ids []string
			for range 20 {
				id, got := d.create(lab.Alice, "")
				if got.status != http.StatusCreated {
					t.Fatal(got)
				}
				ids = append(ids, id)
			}
			atOnceAll(20, func(i int) {
				for _, act := range []string{"start", "kill"} {
					if got := d.ask(lab.Alice, "POST", "/containers/"+ids[i]+"/"+act, ""); got.status != http.StatusNoContent {
						t.Errorf("%s: %d %s", act, got.status, got.body)
					}
				}
			})
			eventually(t, "none runs", func() bool { r := d.report(lab.Alice); return r.Containers.Running == 0 && r.Memory.Pending == 0 })
			d.limit(forThree)
			eventually(t, "the limit is the new one", func() bool { return *d.report(lab.Alice).Memory.Limit == 110<<20 })
			var mu sync.Mutex
			won := 0
			atOnceAll(20, func(i int) {
				act := []string{"start", "restart?t=0"}[i%2]
				got := d.ask(lab.Alice, "POST", "/containers/"+ids[i]+"/"+act, "")
				if got.status == http.StatusNoContent {
					mu.Lock()
					won++
					mu.Unlock()
				} else if !isMemoryRefusal(got) {
					t.Errorf("%s: %d %s", act, got.status, got.body)
				}
			})
			if n := d.running(); won != 3 || n != 3 {
				t.Errorf("%d were let through, and %d run", won, n)
			}
			// Starts of one that runs are nothing new.
			for _, c := range d.inspect() {
				if c.State.Running {
					if got := d.start(lab.Alice, c.ID); got.status != http.StatusNotModified {
						t.Errorf("start again: %d %s", got.status, got.body)
					}
					if got := d.ask(lab.Alice, "POST", "/containers/"+c.ID+"/restart?t=0", ""); got.status != http.StatusNoContent {
						t.Errorf("restart: %d %s", got.status, got.body)
					}
				}
			}
		})
	}
}

// TestNumberOfContainers has stopped ones count, or not, by configuration; at once, too.
func TestNumberOfContainers(t *testing.T) {
	const limits = "{max_containers_per_user: 3}"
	t.Run("all", func(t *testing.T) {
		d := newDesk(t, theEngine, limits, "")
		var mu sync.Mutex
		var ids []string
		atOnceAll(12, func(int) {
			id, got := d.create(lab.Alice, "")
			if got.status == http.StatusCreated {
				mu.Lock()
				ids = append(ids, id)
				mu.Unlock()
			} else if got.status != http.StatusForbidden || !strings.Contains(got.body, "Container quota exceeded (rule container-quota): you have") ||
				!strings.Contains(got.body, "your limit is 3. Remove one") {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
		if len(ids) != 3 || len(d.all()) != 3 {
			t.Fatalf("%d were made, %d are there", len(ids), len(d.all()))
		}
		for _, id := range ids {
			d.must(lab.Alice, "start", id)
			d.must(lab.Alice, "kill", id)
		}
		d.refused(lab.Alice, []string{"you have 3 containers, and your limit is 3", "docker ps -a"}, "run", "--rm", lab.Image, "true")
		if _, got := d.create(lab.Bob, ""); got.status != http.StatusCreated {
			t.Errorf("bob has a limit of his own: %d %s", got.status, got.body)
		}
		d.must(lab.Alice, "rm", ids[0])
		d.must(lab.Alice, "run", "--rm", lab.Image, "true")
		d.must(lab.Alice, "create", lab.Image)
		// They stay counted when the proxy comes anew.
		if err := d.p.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := d.p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob}); err != nil {
			t.Fatal(err)
		}
		d.refused(lab.Alice, []string{"you have 3 containers"}, "create", lab.Image)
	})
	t.Run("running", func(t *testing.T) {
		d := newDesk(t, theEngine, limits, "quota: {count: running}\n")
		var ids []string
		for range 6 {
			id, got := d.create(lab.Alice, "")
			if got.status != http.StatusCreated {
				t.Fatal(got)
			}
			ids = append(ids, id)
		}
		var mu sync.Mutex
		won := 0
		atOnceAll(len(ids), func(i int) {
			got := d.start(lab.Alice, ids[i])
			if got.status == http.StatusNoContent {
				mu.Lock()
				won++
				mu.Unlock()
			} else if got.status != http.StatusForbidden || !strings.Contains(got.body, "running containers") {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
		if n := d.running(); won != 3 || n != 3 {
			t.Errorf("%d starts were let through, and %d run", won, n)
		}
		d.refused(lab.Alice, []string{"Container quota exceeded", "running containers", "docker stop"}, "run", "-d", lab.Image, "sleep", "1000")
	})
}
