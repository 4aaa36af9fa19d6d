package integration

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestSlicesHaveTheirLimits looks at the kernel's files, before the first container and
// while the limits file changes under one that runs.
func TestSlicesHaveTheirLimits(t *testing.T) {
	d := newDesk(t, theEngine, "{aggregate: {cpu_quota: 150%, memory_max: 200m, memory_high: 150m, tasks_max: 123}}", "")
	want := func(what string, memory, pids, quota any) {
		t.Helper()
		text := fmt.Sprint(memory, " ", pids, " ", quota)
		for _, who := range []lab.Person{lab.Alice, lab.Bob} {
			now := func() string {
				return d.figure(who, "memory.limit_in_bytes") + " " + d.figure(who, "pids.max") + " " + d.figure(who, "cpu.cfs_quota_us")
			}
			for range 500 {
				if now() == text {
					break
				}
				pause()
			}
			if got := now(); got != text {
				t.Errorf("%s: %s's slice has %s, want %s", what, who.Name, got, text)
			}
		}
	}
	want("at the start", 200<<20, 123, 150_000)
	d.must(lab.Alice, "run", "-d", "-m", "64m", lab.Image, "sleep", "100000")
	d.limit("{aggregate: {cpu_quota: 120%, memory_max: 100m, tasks_max: 45}}")
	want("changed", 100<<20, 45, 120_000)
	d.refused(lab.Alice, append(memoryFigures, "Limit: 100m"), "run", "-m", "64m", lab.Image, "true")
	// Broken, the last good limits hold; what is given up is reset.
	if err := os.WriteFile(d.limits, []byte("groups: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log tells of it", func() bool { return strings.Contains(d.p.Log(), "the limits cannot be used") })
	want("broken", 100<<20, 45, 120_000)
	d.limit("{aggregate: {memory_max: 100m}}")
	want("less", 100<<20, "max", -1)
	d.limit("{}")
	want("none", "max", "max", -1)
	d.must(lab.Alice, "run", "--rm", "-m", "512m", lab.Image, "true")
}

// TestTheKernelHoldsTheSlice has processes in a container ask for more memory and more
// processes than their user may have; the container itself has no limit.
func TestTheKernelHoldsTheSlice(t *testing.T) {
	d := newDesk(t, theEngine, "{pids_limit: null, aggregate: {memory_max: 48m, tasks_max: 40}}", "")
	out, err := d.as(lab.Alice, "run", "--name", "oom-"+d.group, lab.Image, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=90M count=1; echo ended $?")
	c, ok := d.one("oom-" + d.group)
	if !ok || strings.Contains(out, "ended 0") && c.State.ExitCode == 0 {
		t.Errorf("90 MiB in a slice of 48: %v: %s: %+v", err, out, c.State)
	}
	if n, err := strconv.Atoi(d.figure(lab.Alice, "memory.failcnt")); err != nil || n == 0 {
		t.Errorf("the slice's limit was not met: %d, %v", n, err)
	}
	out, _ = d.as(lab.Alice, "run", "--rm", lab.Image, "sh", "-c", "for i in $(seq 100); do sleep 20 & done; wait")
	if !strings.Contains(out, "can't fork") {
		t.Errorf("100 processes in a slice of 40: %s", out)
	}
}

// TestPageCacheIsNoUse writes a file larger than what is left: the cache that it fills is
// reported, and does not count unless the configuration says so.
func TestPageCacheIsNoUse(t *testing.T) {
	for mode, counts := range map[string]bool{"active": false, "all": true} {
		t.Run(mode, func(t *testing.T) {
			d := newDesk(t, theEngine, "{aggregate: {memory_max: 200m}}", "quota: {page_cache: "+mode+"}\n")
			d.must(lab.Alice, "run", "-d", "--name", "cache-"+d.group, lab.Image, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=150 && sync && sleep 100000")
			eventually(t, "the file is in the cache", func() bool { return d.report(lab.Alice).Memory.Cache > 100<<20 })
			m := d.report(lab.Alice).Memory
			if (m.Used > 100<<20) != counts || m.Current < m.Cache {
				t.Errorf("%+v", m)
			}
			_, got := d.create(lab.Alice, `"Memory":104857600`)
			if counts && !isMemoryRefusal(got) || !counts && got.status != http.StatusCreated {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
}

// TestFewerCPUsThanOneContainerMayHave gives a user less for all than for one: version 1
// of cgroups refuses containers a larger quota than their slice's.
func TestFewerCPUsThanOneContainerMayHave(t *testing.T) {
	d := newDesk(t, theEngine, "{max_cpus: 32, aggregate: {cpu_quota: 50%}}", "")
	d.must(lab.Alice, "run", "-d", lab.Image, "sleep", "100000")
	d.refused(lab.Alice, []string{"--cpus 1 is over", "rule container-limits"}, "run", "--rm", "--cpus", "1", lab.Image, "true")
	d.must(lab.Alice, "run", "--rm", "--cpus", "0.5", lab.Image, "true")
	d.refused(lab.Alice, []string{"rule container-limits"}, "update", "--cpus", "1", d.all()[0])
}
