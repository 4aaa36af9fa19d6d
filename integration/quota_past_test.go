package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// stood is the sum of the limits of what runs or may, as the Engine tells it.
func (d *desk) stood() (sum int64) {
	for _, c := range d.inspect() {
		if c.State.Running || c.State.Status == "created" {
			sum += c.HostConfig.Memory
		}
	}
	return sum
}

// TestNoWayPast tries what might lead round the memory quota, with room for 110 MiB.
func TestNoWayPast(t *testing.T) {
	const limits = "{memory: 64m, memory_swap: 64m, aggregate: {memory_max: 110m}}"
	for name, accounting := range accountings {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, theEngine, limits, accounting)
			full := func(what string) {
				t.Helper()
				if sum := d.stood(); sum > 110<<20 {
					t.Errorf("%s: %d bytes are promised", what, sum)
				}
			}
			add := func(host string) string {
				t.Helper()
				id, got := d.create(lab.Alice, host)
				if got.status != http.StatusCreated {
					t.Fatalf("%s: %d %s", host, got.status, got.body)
				}
				return id
			}
			// Raised after its creation, or its start.
			one, two := add(`"Memory":33554432`), add(`"Memory":33554432`)
			d.must(lab.Alice, "start", one)
			for _, id := range []string{one, two} {
				d.must(lab.Alice, "update", "--memory", "40m", id)
				d.must(lab.Alice, "update", "--memory", "32m", id)
			}
			d.must(lab.Alice, "update", "--memory", "64m", two)
			d.refused(lab.Alice, memoryFigures, "update", "--memory", "64m", one)
			full("update")
			d.refused(lab.Alice, memoryFigures, "run", "-d", "-m", "32m", lab.Image, "sleep", "1000")
			// Both at once: 32 and 64 are promised, 14 are left.
			three := add(`"Memory":8388608`)
			atOnceAll(2, func(i int) {
				d.ask(lab.Alice, "POST", "/containers/"+[]string{one, three}[i]+"/update", `{"Memory":`+[]string{"39845888", "14680064"}[i]+`}`)
			})
			full("updates at once")
			d.clear()

			// Exited ones, raised while nothing of them counts, and started then.
			var ids []string
			for range 4 {
				id := add(`"Memory":20971520`)
				d.must(lab.Alice, "start", id)
				d.must(lab.Alice, "kill", id)
				ids = append(ids, id)
			}
			for _, id := range ids {
				d.must(lab.Alice, "update", "--memory", "50m", id)
			}
			won := 0
			for _, id := range ids {
				if got := d.start(lab.Alice, id); got.status == http.StatusNoContent {
					won++
				} else if !isMemoryRefusal(got) {
					t.Errorf("start: %d %s", got.status, got.body)
				}
			}
			if won != 2 {
				t.Errorf("%d of 50 MiB were started", won)
			}
			d.refused(lab.Alice, memoryFigures, "restart", ids[2])
			full("exited ones")
			d.must(lab.Alice, "restart", "-t", "0", ids[0])
			// Paused ones keep what they have.
			d.must(lab.Alice, "pause", ids[0], ids[1])
			d.refused(lab.Alice, memoryFigures, "start", ids[3])
			d.must(lab.Alice, "unpause", ids[0], ids[1])
			// An image of one, run anew.
			d.must(lab.Alice, "commit", ids[0], "past:"+name)
			untag(t, "past:"+name)
			d.refused(lab.Alice, memoryFigures, "run", "-d", "past:"+name, "sleep", "1000")
			full("commit")
			d.clear()
		})
	}
}

// TestRestartPolicies has the Engine start containers by itself.
func TestRestartPolicies(t *testing.T) {
	d := newDesk(t, theEngine, forThree, "")
	body := `"RestartPolicy":{"Name":"always"}`
	var ids []string
	for range 3 {
		id, got := d.create(lab.Alice, body)
		if got.status != http.StatusCreated {
			t.Fatal(got)
		}
		d.must(lab.Alice, "start", id)
		ids = append(ids, id)
	}
	// Their process ends, and the Engine starts them again: they count all the while.
	for range 3 {
		for _, id := range ids {
			c, _ := d.one(id)
			kill(t, c.State.Pid)
			if _, got := d.create(lab.Alice, ""); !isMemoryRefusal(got) {
				t.Errorf("create: %d %s", got.status, got.body)
			}
			eventually(t, "it runs again", func() bool {
				now, ok := d.one(id)
				return ok && now.State.Running && !now.State.Restarting && now.State.Pid != c.State.Pid && now.State.Pid > 0
			})
		}
	}
	if n := d.running(); n != 3 {
		t.Errorf("%d run", n)
	}
	// Stopped, always starts with the Engine: it counts until that is taken away.
	d.must(lab.Alice, "stop", "-t", "0", ids[0])
	d.refused(lab.Alice, memoryFigures, "create", lab.Image)
	d.must(lab.Alice, "update", "--restart", "no", ids[0])
	id, got := d.create(lab.Alice, "")
	if got.status != http.StatusCreated {
		t.Fatalf("with one that starts no more: %d %s", got.status, got.body)
	}
	// Now that there is no room, it may not be made to start with the Engine again.
	d.refused(lab.Alice, memoryFigures, "update", "--restart", "always", ids[0])
	d.refused(lab.Alice, memoryFigures, "start", ids[0])
	d.must(lab.Alice, "rm", id)
	d.must(lab.Alice, "update", "--restart", "unless-stopped", ids[0])
	d.must(lab.Alice, "start", ids[0])
	// Stopped by its user, this one stays stopped.
	d.must(lab.Alice, "stop", "-t", "0", ids[0])
	eventually(t, "there is room", func() bool { return d.report(lab.Alice).Memory.Committed == 64<<20 })
	if _, got := d.create(lab.Alice, ""); got.status != http.StatusCreated {
		t.Errorf("beside one that was stopped: %d %s", got.status, got.body)
	}
}

// TestComposeScale scales a service beyond what there is room for.
func TestComposeScale(t *testing.T) {
	for name, accounting := range accountings {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, theEngine, forThree, accounting)
			dir := filepath.Join(d.p.Home(lab.Alice), "scale")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			const file = "version: \"2.4\"\nservices: {web: {image: \"busybox:local\", command: sleep 1000, stop_grace_period: 0s, network_mode: bridge, volumes: [/data]}}\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
			compose := func(args ...string) (string, error) {
				cmd := d.p.Command(limit(t), lab.Alice, "docker-compose", append([]string{"-p", "scale" + name}, args...)...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			before := d.leftovers()["volumes"]
			out, err := compose("up", "-d", "--scale", "web=8")
			if err == nil || !strings.Contains(out, "Memory quota exceeded (rule memory-quota)") {
				t.Errorf("up: %v: %s", err, out)
			}
			if n := len(d.all()); n != 3 {
				t.Errorf("there are %d", n)
			}
			if more := d.leftovers()["volumes"] - before; more != 3 {
				t.Errorf("there are %d volumes more", more)
			}
			if out, err := compose("up", "-d", "--scale", "web=3"); err != nil || d.running() != 3 {
				t.Errorf("as many as there is room for: %v: %s; %d run", err, out, d.running())
			}
			if out, err := compose("up", "-d", "--force-recreate", "--scale", "web=1"); err != nil || d.running() != 1 {
				t.Errorf("recreate: %v: %s; %d run", err, out, d.running())
			}
			if out, err := compose("down", "-v"); err != nil {
				t.Errorf("down: %v: %s", err, out)
			}
		})
	}
}

// TestBuildsAreHeldToo looks at the cgroup of a classic build's step from inside, and
// builds where there is no room.
func TestBuildsAreHeldToo(t *testing.T) {
	classic(t)
	d := newDesk(t, theEngine, "{memory: 48m, memory_swap: 48m, max_cpus: 1, shm_size: 8m, aggregate: {memory_max: 110m}}", "")
	dir := filepath.Join(d.p.Home(lab.Alice), "held")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := func(args ...string) (string, error) {
		out, err := d.as(lab.Alice, append(append([]string{"build", "--no-cache", "--force-rm"}, args...), dir)...)
		return out, err
	}
	write := func(step string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox:local\nRUN "+step+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The Engine mounts no cgroups for a step: it is looked at from outside.
	write("grep -E ':(memory|cpu)' /proc/self/cgroup; df -k /dev/shm; sleep 3")
	seen := make(map[string]bool)
	done := make(chan struct{})
	var out string
	var err error
	go func() { defer close(done); out, err = build("-t", "held:1") }()
	untag(t, "held:1")
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
			for _, id := range d.below("memory", lab.Alice) {
				seen[d.figure(lab.Alice, "memory.limit_in_bytes", id)+" "+d.figure(lab.Alice, "memory.memsw.limit_in_bytes", id)+" "+d.figure(lab.Alice, "cpu.cfs_quota_us", id)] = true
			}
		}
	}
	if err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if want := fmt.Sprint(48<<20, " ", 48<<20, " ", 100_000); !seen[want] {
		t.Errorf("the step's cgroup had %v, want %s", seen, want)
	}
	if !strings.Contains(out, " 8192 ") {
		t.Errorf("shared memory is not 8 MiB: %s", out)
	}
	for _, args := range [][]string{{"--memory", "64m"}, {"--memory-swap", "-1", "--memory", "32m"}, {"--memory-swap", "1g", "--memory", "32m"}, {"--cpu-quota", "200000"}, {"--cpu-quota", "-1"}, {"--shm-size", "1g"}} {
		if out, err := build(args...); err == nil || !strings.Contains(out, "rule container-limits") {
			t.Errorf("build %v: %v: %s", args, err, out)
		}
	}
	for _, query := range []string{"memory=-1", "memory=9223372036854775807", "memory=1&memory=9000000000", "cpuperiod=1000&cpuquota=100000", "shmsize=-1", "memswap=-1"} {
		if got := d.ask(lab.Alice, "POST", "/build?"+query, ""); got.status != http.StatusForbidden && !(query == "memory=1&memory=9000000000" && got.status != http.StatusOK) {
			t.Errorf("build?%s: %d %s", query, got.status, got.body)
		}
	}
	// Full, as far as a build is concerned.
	for range 2 {
		if id, got := d.create(lab.Alice, ""); got.status != http.StatusCreated || d.start(lab.Alice, id).status != http.StatusNoContent {
			t.Fatal(got)
		}
	}
	if out, err := build(); err == nil || !strings.Contains(out, "Memory quota exceeded") {
		t.Errorf("build while full: %v: %s", err, out)
	}
	d.clear()
	// And nothing else while it builds.
	write("sleep 8")
	ctx, cancel := context.WithCancel(limit(t))
	defer cancel()
	going := d.p.Command(ctx, lab.Alice, "docker", "build", "--no-cache", "--force-rm", dir)
	if err := going.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the step runs", func() bool { return d.running() == 1 })
	if _, got := d.create(lab.Alice, ""); got.status != http.StatusCreated {
		t.Errorf("beside the build: %d %s", got.status, got.body)
	}
	if _, got := d.create(lab.Alice, ""); !isMemoryRefusal(got) {
		t.Errorf("beyond the build: %d %s", got.status, got.body)
	}
	if err := going.Wait(); err != nil {
		t.Errorf("build: %v", err)
	}
	eventually(t, "the build counts no more", func() bool { return d.report(lab.Alice).Memory.Committed == 48<<20 })
}

// below are the names of the cgroups in a user's slice.
func (d *desk) below(controller string, who lab.Person) []string {
	list, _ := os.ReadDir(d.cgroup(controller, who))
	var paths []string
	for _, e := range list {
		if e.IsDir() {
			paths = append(paths, e.Name())
		}
	}
	return paths
}
