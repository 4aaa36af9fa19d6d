package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// standing is what the Engine has of a user's.
type standing struct {
	all, running int
	committed    int64
}

// held asks the Engine for all containers with a user's label.
func (d *desk) held(who lab.Person) (s standing) {
	out, err := d.e.Docker(limit(d.t), "ps", "-aq", "--no-trunc", "--filter", "label=ds01.user="+who.Name)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, id := range strings.Fields(out) {
		c, ok := d.one(id)
		if !ok {
			continue
		}
		s.all++
		runs := c.State.Running || c.State.Paused || c.State.Restarting
		if runs {
			s.running++
		}
		restarts := c.HostConfig.RestartPolicy.Name == "always" || c.HostConfig.RestartPolicy.Name == "on-failure" && c.State.ExitCode != 0
		if runs || c.State.Status == "created" || restarts {
			s.committed += c.HostConfig.Memory
		}
	}
	return s
}

// agree wants the proxy to say of its users what the Engine says.
func (d *desk) agree(when string) {
	d.t.Helper()
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		var engine, ledger standing
		eventually(d.t, when+": ledger and Engine agree about "+who.Name, func() bool {
			got := d.ask(who, "GET", "/_ds01/limits", "")
			if got.status != http.StatusOK {
				return false
			}
			r := d.report(who)
			engine, ledger = d.held(who), standing{r.Containers.All, r.Containers.Running, r.Memory.Committed}
			return engine == ledger
		})
		d.t.Logf("%s: %s has %+v", when, who.Name, ledger)
	}
}

// try sends a request whose answer, if any, does not matter.
func try(socket, method, target, body string) string {
	c := lab.HTTPClient(socket)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://docker"+target, bytes.NewReader([]byte(body)))
	if err != nil {
		return ""
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return string(text)
}

// load has somebody do this and that with containers of theirs until stop is closed.
func load(socket, name string, seed uint64, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(seed, seed))
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		c := fmt.Sprint(name, random.IntN(5))
		switch act := random.IntN(8); act {
		case 0, 1, 2:
			restart := []string{"", "always", "unless-stopped", "on-failure"}[random.IntN(4)]
			try(socket, "POST", "/containers/create?name="+c, fmt.Sprintf(`{"Image":"busybox:local","Cmd":["sleep","%d"],"HostConfig":{"Memory":%d,"RestartPolicy":{"Name":%q}}}`,
				1+random.IntN(100), (8+random.IntN(20))<<20, restart))
		case 3, 4:
			try(socket, "POST", "/containers/"+c+"/start", "")
		case 5:
			try(socket, "POST", "/containers/"+c+"/"+[]string{"stop?t=0", "kill", "pause", "unpause", "restart?t=0"}[random.IntN(5)], "")
		case 6:
			try(socket, "POST", "/containers/"+c+"/update", fmt.Sprintf(`{"Memory":%d,"MemorySwap":-1}`, (8+random.IntN(40))<<20))
		case 7:
			try(socket, "DELETE", "/containers/"+c+"?force=1", "")
		}
	}
}

// TestTheLedgerIsTheEngines compares what the proxy counts with what the Engine has, after
// both were ended, and after what nobody told the proxy of.
func TestTheLedgerIsTheEngines(t *testing.T) {
	scratch, err := lab.NewScratch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := scratch.Close(); err != nil {
			t.Error(err)
		}
	})
	e, err := scratch.Engine(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	d := sliced(t, e)
	d.limit("{memory: 64m, memory_swap: null, aggregate: {memory_max: 150m}}")
	// Between proxy and Engine, so that it can be cut.
	between := filepath.Join(scratch.Dir, "between.sock")
	cut := relay(t, between, e.Socket)
	d.p = ownProxy(t, between, "--config", d.config("quota: {accounting: committed}\n"))
	t.Cleanup(d.clear)
	people := []lab.Person{lab.Alice, lab.Bob}

	// The proxy is killed at any point.
	for round := range 4 {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i, who := range people {
			for j := range 3 {
				wg.Go(func() { load(d.p.Socket(who), who.Name, uint64(round*100+i*10+j), stop) })
			}
		}
		for range 20 + rand.IntN(60) {
			pause()
		}
		if err := d.p.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := d.p.Start(limit(t), people); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			pause()
		}
		close(stop)
		wg.Wait()
		d.agree(fmt.Sprint("killed, ", round))
	}

	// Behind its back.
	raw := func(args ...string) string {
		t.Helper()
		out, err := e.Docker(limit(t), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	behind := func() {
		t.Helper()
		id := raw("run", "-d", "--label", "ds01.user=alice", "-m", "20m", lab.Image, "sleep", "100000")
		raw("run", "-d", "--label", "ds01.user=bob", "--restart", "always", "-m", "20m", lab.Image, "sleep", "100000")
		raw("update", "-m", "10m", "--memory-swap", "20m", id)
		gone := raw("create", "--label", "ds01.user=alice", "-m", "20m", lab.Image)
		raw("create", "--label", "ds01.user=alice", "-m", "7m", lab.Image)
		raw("rm", gone)
	}
	behind()
	d.agree("behind its back")

	// The stream of events is cut, and things happen meanwhile.
	raw(append([]string{"rm", "-f"}, strings.Fields(raw("ps", "-aq"))...)...)
	d.agree("removed behind its back")
	cut()
	behind()
	if out := strings.Fields(raw("ps", "-aq", "--filter", "label=ds01.user=alice")); len(out) > 2 {
		raw("rm", "-f", out[0])
		raw("rm", "-f", out[len(out)-1])
	}
	for range 3 {
		raw("run", "-d", "--label", "ds01.user=alice", "-m", "50m", lab.Image, "sleep", "100000")
	}
	cut = relay(t, between, e.Socket)
	// Nothing is let through before that is known.
	if id, got := d.create(lab.Alice, ""); got.status == http.StatusCreated {
		t.Errorf("created %.12s where 150 MiB were promised meanwhile", id)
	}
	d.agree("without events")

	// The Engine is stopped and started: containers end, and those that restart do.
	if err := e.Halt(); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(limit(t)); err != nil {
		t.Fatal(err)
	}
	d.agree("the Engine started anew")
	d.clear()
	if out := strings.Fields(raw("ps", "-aq")); len(out) > 0 {
		raw(append([]string{"rm", "-f"}, out...)...)
	}
	d.agree("all removed")
	if s := d.held(lab.Alice); s != (standing{}) {
		t.Errorf("alice has %+v", s)
	}
	cut()
}
