package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// look is what an independent look at the Engine shows of a container.
func look(t *testing.T, id string) string {
	t.Helper()
	return admin(t, "inspect", id, "--format",
		"{{.Name}} {{.State.Status}} {{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}} {{.HostConfig.Memory}} {{json .HostConfig.RestartPolicy}} {{json .ExecIDs}}"+
			"{{range $name, $e := .NetworkSettings.Networks}} {{$name}} {{$e.EndpointID}} {{$e.IPAddress}} {{json $e.Aliases}}{{end}}") +
		admin(t, "diff", id)
}

// TestForeignListsAreClosed looks for bob's container in every answer that could
// name it.
func TestForeignListsAreClosed(t *testing.T) {
	bobs := container(t, lab.Bob, "hidden-bob", "-e", "SECRET=hidden-value")
	for _, path := range []string{
		"/containers/json", "/containers/json?all=1", "/containers/json?limit=5", "/containers/json?all=1&size=1",
		`/containers/json?all=1&filters={"label":["ds01.user=bob"]}`, `/containers/json?all=1&filters={"label":{"ds01.user=bob":true}}`,
		`/containers/json?all=1&filters={"name":["hidden-bob"]}`, `/containers/json?all=1&filters={"id":["` + bobs + `"]}`,
		`/containers/json?all=1&filters=null`, `/containers/json?all=1&filters={}`, `/containers/json?all=1&filters={"label":{}}`,
		`/containers/json?all=1&filters=&filters={"name":["hidden-bob"]}`, `/containers/json?all=1&filters={"Label":["x"]}`,
		`/v1.24/containers/json?all=1`, `/containers/%6a%73on?all=1`, "/system/df", "/networks/bridge", "/networks", "/v1.24/networks", "/v1.24/networks/",
	} {
		p, q, ok := strings.Cut(path, "filters=")
		if ok {
			path = p + "filters=" + strings.ReplaceAll(url.QueryEscape(q), "%26filters%3D", "&filters=")
		}
		got := ask(t, theProxy.Socket(lab.Alice), "GET", path, "")
		if strings.Contains(got.body, "hidden-") || strings.Contains(got.body, bobs[:12]) {
			t.Errorf("%s shows bob's container: %s", path, got.body)
		}
		if got.status != 200 && got.status != 400 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// TestEventsShowOnesOwn wants alice's stream to have her container's life and
// nothing of bob's.
func TestEventsShowOnesOwn(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://d/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c := lab.HTTPClient(theProxy.Socket(lab.Alice))
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if time.Since(began) > 10*time.Second {
		t.Error("the header came only with the first event")
	}
	as(t, lab.Bob, "run", "--rm", "--name", "ev-bob", lab.Image, "true")
	as(t, lab.Alice, "run", "--rm", "--name", "ev-alice", lab.Image, "true")
	dec := json.NewDecoder(resp.Body)
	var seen []string
	for {
		var e struct {
			Type, Action string
			Actor        struct{ Attributes map[string]string }
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("after %v: %v", seen, err)
		}
		if owner := e.Actor.Attributes["ds01.user"]; e.Type == "container" && owner != "alice" {
			t.Errorf("alice sees %s of %s's container", e.Action, owner)
		}
		seen = append(seen, e.Type+" "+e.Action)
		if e.Type == "container" && e.Action == "destroy" {
			break
		}
	}
	for _, want := range []string{"container create", "container start", "container die", "network connect"} {
		if !strings.Contains(strings.Join(seen, ","), want) {
			t.Errorf("no %s in %v", want, seen)
		}
	}
}

// TestOwnerCannotBeForged creates as alice with bob's labels, in all spellings,
// and from an image that carries them.
func TestOwnerCannotBeForged(t *testing.T) {
	admin(t, "create", "--name", "forge-base", "--label", "ds01.user=bob", "--label", "ds01.protected=true", lab.Image)
	admin(t, "commit", "forge-base", "forge:1")
	admin(t, "rm", "forge-base")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rmi", "-f", "forge:1") })
	for i, body := range []string{
		`{"Image":"forge:1"}`,
		`{"Image":"busybox:local","Labels":{"ds01.user":"bob","ds01.protected":"true"}}`,
		`{"Image":"busybox:local","labels":{"ds01.user":"bob"},"LABELS":{"ds01.user":"bob"}}`,
		`{"Image":"busybox:local","Label\u017f":{"ds01.user":"bob"},"Label` + "ſ" + `":{"ds01.user":"bob"}}`,
		`{"Image":"busybox:local","CgroupParent":"/evil","Privileged":true,"Binds":["/:/host"]}`,
		`{"Image":"busybox:local","HostConfig":{"cgroupparent":"/evil","CgroupParent":"../../../evil"}}`,
	} {
		name := fmt.Sprintf("forged-%d", i)
		got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create?name="+name, body)
		if got.status != http.StatusCreated {
			t.Fatalf("%s: %d %s", body, got.status, got.body)
		}
		t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", name) })
		state := admin(t, "inspect", name, "--format", `{{index .Config.Labels "ds01.user"}} {{index .Config.Labels "ds01.protected"}} {{.HostConfig.CgroupParent}} {{.HostConfig.Privileged}} {{.HostConfig.Binds}}`)
		if want := "alice false /ds01.slice/ds01-student.slice/ds01-student-alice.slice false []"; state != want {
			t.Errorf("%s became %q, want %q", body, state, want)
		}
	}
}

// TestRunsInTheUsersSlice looks where the kernel has the container's process.
func TestRunsInTheUsersSlice(t *testing.T) {
	id := container(t, lab.Alice, "slice-alice")
	pid := admin(t, "inspect", id, "--format", "{{.State.Pid}}")
	text := cgroupOf(t, pid)
	if want := "/ds01.slice/ds01-student.slice/ds01-student-alice.slice/" + id; !strings.Contains(text, want) {
		t.Errorf("the container's cgroup is\n%swhich has no %s", text, want)
	}
}

// TestRenameRace renames a container of alice's to and from a name while she
// uses the name for bob's: whatever she reaches must be hers.
func TestRenameRace(t *testing.T) {
	bobs := container(t, lab.Bob, "race-target")
	mine := container(t, lab.Alice, "race-mine")
	before := look(t, bobs)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(f func()) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		}()
	}
	alice, bob := theProxy.Socket(lab.Alice), theProxy.Socket(lab.Bob)
	// Bob and alice both move their containers through the name x.
	loop(func() {
		ask(t, bob, "POST", "/containers/"+bobs+"/rename?name=race-x", "")
		ask(t, bob, "POST", "/containers/"+bobs+"/rename?name=race-target", "")
	})
	loop(func() {
		ask(t, alice, "POST", "/containers/"+mine+"/rename?name=race-x", "")
		ask(t, alice, "POST", "/containers/"+mine+"/rename?name=race-mine", "")
	})
	var reached, refused, wrong atomic.Int64
	for range 2 {
		loop(func() {
			got := ask(t, alice, "GET", "/containers/race-x/json", "")
			switch {
			case strings.Contains(got.body, bobs):
				wrong.Add(1)
			case got.status == 200:
				reached.Add(1)
			case got.status == 403:
				refused.Add(1)
			}
			// A write that would show on bob's container.
			ask(t, alice, "POST", "/containers/race-x/update", `{"Memory":33554432,"MemorySwap":33554432}`)
		})
	}
	time.Sleep(raceTime)
	close(stop)
	wg.Wait()
	ask(t, bob, "POST", "/containers/"+bobs+"/rename?name=race-target", "")
	if wrong.Load() > 0 {
		t.Errorf("bob's container was shown %d times", wrong.Load())
	}
	if after := look(t, bobs); after != before {
		t.Errorf("bob's container changed:\n%s\n%s", before, after)
	}
	if reached.Load() == 0 || refused.Load() == 0 {
		t.Errorf("the race was not run: reached own %d times, refused %d times", reached.Load(), refused.Load())
	}
}

// raceTime is how long a race is run.
const raceTime = 20 * time.Second

// TestOwnNamesFollowAtOnce renames and recreates under one name and wants every
// answer to be about the container that has the name now.
func TestOwnNamesFollowAtOnce(t *testing.T) {
	sock := theProxy.Socket(lab.Alice)
	create := func() string {
		t.Helper()
		got := ask(t, sock, "POST", "/containers/create?name=follow", `{"Image":"busybox:local"}`)
		var c struct{ ID string }
		if err := json.Unmarshal([]byte(got.body), &c); err != nil || got.status != http.StatusCreated {
			t.Fatalf("create: %d %s", got.status, got.body)
		}
		t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", c.ID) })
		return c.ID
	}
	old := create()
	for range 15 {
		if got := ask(t, sock, "POST", "/containers/follow/rename?name=follow-old", ""); got.status != http.StatusNoContent {
			t.Fatalf("rename: %d %s", got.status, got.body)
		}
		if got := ask(t, sock, "GET", "/containers/follow/json", ""); got.status != http.StatusNotFound {
			t.Errorf("the former name answers %d", got.status)
		}
		fresh := create()
		if got := ask(t, sock, "GET", "/containers/follow/json", ""); !strings.Contains(got.body, fresh) {
			t.Errorf("the name does not lead to the new container: %d", got.status)
		}
		if got := ask(t, sock, "GET", "/containers/follow-old/json", ""); !strings.Contains(got.body, old) {
			t.Errorf("the old container is not found by its new name: %d", got.status)
		}
		if got := ask(t, sock, "DELETE", "/containers/follow-old", ""); got.status != http.StatusNoContent {
			t.Errorf("remove: %d %s", got.status, got.body)
		}
		old = fresh
	}
}

// TestANameCannotTakeAnothersPrefix lets the admin give bob a container that is
// named like the short ID of alice's; her short ID still leads to hers.
func TestANameCannotTakeAnothersPrefix(t *testing.T) {
	mine := container(t, lab.Alice, "prefix-alice")
	got := ask(t, theProxy.Socket(lab.Bob), "POST", "/containers/create?name="+mine[:12], `{"Image":"busybox:local"}`)
	if got.status != http.StatusForbidden || !strings.Contains(got.body, "looks like a container ID") {
		t.Errorf("bob's create: %d %s", got.status, got.body)
	}
	admin(t, "create", "--name", mine[:12], "--label", "ds01.user=bob", lab.Image)
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", mine[:12]) })
	eventually(t, "the short ID leads to alice's own", func() bool {
		return strings.Contains(ask(t, theProxy.Socket(lab.Alice), "GET", "/containers/"+mine[:12]+"/json", "").body, mine)
	})
}
