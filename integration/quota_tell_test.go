package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
	"github.com/ds01/ds01-proxy/proxy"
)

// TestLimitsAreTold asks as the user, as root, as somebody else, and by the other name.
func TestLimitsAreTold(t *testing.T) {
	d := newDesk(t, theEngine, "{memory: 32m, memory_swap: 32m, max_cpus: 1, pids_limit: 77, max_containers_per_user: 9, aggregate: {memory_max: 110m, cpu_quota: 150%, tasks_max: 99, gpu_limit: 0}}", "")
	if _, got := d.create(lab.Alice, ""); got.status != http.StatusCreated {
		t.Fatal(got)
	}
	d.must(lab.Alice, "run", "-d", lab.Image, "sleep", "100000")
	d.refused(lab.Alice, []string{"rule container-limits"}, "run", "-m", "1g", lab.Image)
	atOnceAll(3, func(int) { d.create(lab.Alice, "") })
	link := filepath.Join(mkdir(d.p.Home(lab.Alice), "bin"), "check-limits")
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	told := func(cmd *exec.Cmd) string {
		t.Helper()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
		return string(out)
	}
	root := func(args ...string) *exec.Cmd {
		return exec.CommandContext(limit(t), binary, append(append([]string{"limits"}, args...), "--run-dir", filepath.Join(d.p.Dir, "run"))...)
	}
	for _, text := range []string{
		told(d.p.Command(limit(t), lab.Alice, binary, "limits")), told(d.p.Command(limit(t), lab.Alice, binary, "limits", "alice")),
		told(d.p.Command(limit(t), lab.Alice, link)), told(root("alice")),
	} {
		for _, want := range []string{"alice (group " + d.group + ")", "of 110m", "of 99", "up to 1.5", "3 of 9 (1 running)", "limits of all containers 96m", "processes 77", "memory 32m", "Last refusal", "Memory quota exceeded"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in:\n%s", want, text)
			}
		}
	}
	for _, text := range []string{told(d.p.Command(limit(t), lab.Alice, link, "--json")), told(root("alice", "--json"))} {
		var r proxy.Report
		if err := json.Unmarshal([]byte(text), &r); err != nil || r.User != "alice" || r.Containers.All != 3 || *r.Memory.Limit != 110<<20 || r.Memory.Committed != 96<<20 || r.Refused == nil {
			t.Errorf("%v: %s", err, text)
		}
	}
	if out, err := d.p.Command(limit(t), lab.Alice, binary, "limits", "bob").CombinedOutput(); err == nil || strings.Contains(string(out), "MEMORY") {
		t.Errorf("alice is told of bob: %v: %s", err, out)
	}
	if got := d.ask(lab.Alice, "GET", "/_ds01/limits?user=bob", ""); got.status != http.StatusForbidden {
		t.Errorf("%d %s", got.status, got.body)
	}
	if out, err := root().CombinedOutput(); err == nil || !strings.Contains(string(out), "name a user") {
		t.Errorf("root, of nobody: %v: %s", err, out)
	}
	if out, err := root("nobody-here").CombinedOutput(); err == nil {
		t.Errorf("root, of a stranger: %s", out)
	}
}

// TestManyProcessesAreWarnedOf has the docker CLI print that few processes are left.
func TestManyProcessesAreWarnedOf(t *testing.T) {
	d := newDesk(t, theEngine, "{aggregate: {tasks_max: 40}}", "")
	if out := d.must(lab.Alice, "create", lab.Image); strings.Contains(out, "WARNING") {
		t.Errorf("warned of nothing: %s", out)
	}
	d.must(lab.Alice, "run", "-d", lab.Image, "sh", "-c", "for i in $(seq 35); do sleep 100000 & done; wait")
	eventually(t, "there are 36", func() bool { return *d.report(lab.Alice).PIDs.Used == 36 })
	out := d.must(lab.Alice, "create", lab.Image)
	if !strings.Contains(out, "WARNING: You have 36 of 40 processes and threads") {
		t.Errorf("docker create prints %q", out)
	}
}

// TestAdminsHaveNoGate lets an admin pass what their group may not.
func TestAdminsHaveNoGate(t *testing.T) {
	d := newDesk(t, theEngine, "{memory: 32m, max_containers_per_user: 2, aggregate: {memory_max: 64m}}", "admins: {users: [bob]}\n")
	for range 3 {
		id := d.must(lab.Bob, "create", "-m", "1g", lab.Image)
		t.Cleanup(func() { _, _ = theEngine.Docker(limit(t), "rm", "-f", id) })
	}
	for range 3 {
		id := admin(t, "create", "--label", "ds01.user=bob", "-m", "1g", lab.Image)
		t.Cleanup(func() { _, _ = theEngine.Docker(limit(t), "rm", "-f", id) })
	}
	// What an admin makes is nobody's; what has their label counts.
	told := func(args ...string) (r proxy.Report) {
		t.Helper()
		out, err := d.p.Command(limit(t), lab.Bob, binary, append([]string{"limits", "--json"}, args...)...).CombinedOutput()
		if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}
	eventually(t, "what is bob's counts", func() bool { r := told(); return r.Admin && r.Containers.All == 3 && r.Memory.Committed == 3<<30 })
	d.refused(lab.Alice, []string{"rule container-limits"}, "create", "-m", "1g", lab.Image)
	if r := told("alice"); r.User != "alice" || r.Admin {
		t.Errorf("an admin asks about alice: %+v", r)
	}
}

// TestMonitoringHoldsNobody records what would be refused, and changes nothing.
func TestMonitoringHoldsNobody(t *testing.T) {
	d := newDesk(t, theEngine, "{memory: 32m, memory_swap: 32m, shm_size: 8m, pids_limit: 50, max_cpus: 0.5, aggregate: {memory_max: 64m}}", "enforcement: monitoring\n")
	for i, c := range []struct{ host, rule string }{
		{``, ""}, {`"Memory":1073741824`, "container-limits"}, {`"Memory":33554432`, ""}, {`"Memory":33554432`, "memory-quota"},
	} {
		id, got := d.create(lab.Alice, c.host)
		if got.status != http.StatusCreated {
			t.Fatalf("%s: %d %s", c.host, got.status, got.body)
		}
		made, _ := d.one(id)
		h := made.HostConfig
		if want := []int64{0, 1 << 30, 32 << 20, 32 << 20}[i]; h.Memory != want || h.NanoCPUs != 0 || h.PidsLimit != nil && *h.PidsLimit > 0 || h.ShmSize != 64<<20 {
			t.Errorf("%s was made as %+v", c.host, h)
		}
		if c.rule == "" {
			continue
		}
		eventually(t, "the audit log says would_deny "+c.rule, func() bool {
			text, err := d.p.Audit()
			for line := range strings.Lines(text) {
				if strings.Contains(line, `"verdict":"would_deny"`) && strings.Contains(line, `"rule":"`+c.rule+`"`) {
					return true
				}
			}
			return err != nil
		})
	}
}

// broken starts a proxy that sees a file of alice's slice as another one, alone.
func broken(t *testing.T, d *desk, file, as, config string) {
	t.Helper()
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if err := os.MkdirAll(d.cgroup(controller, lab.Alice), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := filepath.Join(t.TempDir(), "proxy")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare --mount --propagation slave sh -c 'mount --bind %s %s && exec \"$0\" \"$@\"' %s \"$@\"\n", as, filepath.Join(d.cgroup("memory", lab.Alice), file), binary)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ds01p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d.p, err = lab.StartProxy(limit(t), script, dir, d.e.Socket, []lab.Person{lab.Alice, lab.Bob}, "--config", d.config(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.p.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(d.clear)
}

// TestUnreadableUse cannot read what a user uses, or not limit it: that passes loudly, or
// is refused, by configuration.
func TestUnreadableUse(t *testing.T) {
	for _, c := range []struct{ name, file, as, rule string }{
		{"unreadable", "memory.usage_in_bytes", "/dev/null", "cgroup-unreadable"},
		{"unlimited", "memory.limit_in_bytes", "/dev/full", "slice-limits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, sw := range []string{"allow", "deny"} {
				d := sliced(t, theEngine)
				d.limit(forThree)
				broken(t, d, c.file, c.as, "on_cgroup_error: "+sw+"\n")
				id, got := d.create(lab.Alice, "")
				if sw == "deny" {
					if got.status != http.StatusForbidden || !strings.Contains(got.body, "rule "+c.rule) || len(d.all()) != 0 {
						t.Errorf("deny: %d %s", got.status, got.body)
					}
					if _, got := d.create(lab.Bob, ""); got.status != http.StatusCreated {
						t.Errorf("bob: %d %s", got.status, got.body)
					}
					continue
				}
				if got.status != http.StatusCreated || d.start(lab.Alice, id).status != http.StatusNoContent {
					t.Errorf("allow: %d %s", got.status, got.body)
				}
				eventually(t, "it is recorded", func() bool {
					text, err := d.p.Audit()
					return err == nil && strings.Contains(text, c.rule) && strings.Contains(text, `"verdict":"fail_open"`)
				})
				if log := d.p.Log(); !strings.Contains(log, `"cause":"`+c.rule+`"`) {
					t.Errorf("the log does not tell it: %s", log)
				}
				// What is promised holds all the same.
				for range 2 {
					d.create(lab.Alice, "")
				}
				if _, got := d.create(lab.Alice, ""); !isMemoryRefusal(got) {
					t.Errorf("a fourth: %d %s", got.status, got.body)
				}
				d.clear()
			}
		})
	}
}
