package cgroupstat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/policy"
)

// system returns this machine's tree, or says why it cannot be used.
func system(t testing.TB) Tree {
	t.Helper()
	tree, err := System()
	if err != nil {
		t.Skip(err)
	}
	if _, err := tree.controllers(cpu, memory, pids); err != nil {
		t.Skip(err)
	}
	if os.Getuid() != 0 {
		t.Skip("only root makes cgroups")
	}
	return tree
}

// own returns a slice path of three levels that nothing else has, and a way to the
// directories of its controllers. All three levels are removed at the end.
func own(t testing.TB, tree Tree) (string, func(controller string) string) {
	t.Helper()
	name := fmt.Sprintf("ds01cgroupstat%d_%d", os.Getpid(), time.Now().UnixNano())
	p := fmt.Sprintf("/%s.slice/%s-g.slice/%s-g-u.slice", name, name, name)
	dir := func(controller string) string {
		root, err := tree.controller(controller)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(root, p)
	}
	t.Cleanup(func() {
		for _, c := range []string{cpu, memory, pids} {
			d := dir(c)
			for range 3 {
				if err := remove(d); err != nil {
					t.Errorf("left behind: %v", err)
				}
				d = filepath.Dir(d)
			}
		}
	})
	return p, dir
}

// remove waits for the kernel to let go of processes that have ended.
func remove(dir string) (err error) {
	for range 100 {
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}

// child starts a process in the slice that first joins it and then runs a script; it ends with the test.
func child(t testing.TB, dirs []string, script string) {
	t.Helper()
	var join strings.Builder
	for _, d := range dirs {
		fmt.Fprintf(&join, "echo $$ > %s/cgroup.procs && ", d)
	}
	cmd := exec.Command("/bin/sh", "-c", join.String()+script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
}

func limiter(t testing.TB, tree Tree) *Limiter {
	t.Helper()
	l, err := NewLimiter(tree)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestSystemUsage reads a slice as it comes, is used by a cgroup below it, and goes.
func TestSystemUsage(t *testing.T) {
	tree := system(t)
	p, dir := own(t, tree)
	r, l := reader(t, tree), limiter(t, tree)
	if u, err := r.Read(p); err != nil || u != (Usage{}) {
		t.Fatalf("before: %+v, %v", u, err)
	}
	if err := l.Apply(p, nil); err != nil {
		t.Fatal(err)
	}
	if u, err := r.Read(p); err != nil || !u.Exists || u.PIDs != 0 {
		t.Fatalf("empty: %+v, %v", u, err)
	}

	// As the Engine does, processes go into a cgroup below the slice.
	below := p + "/container"
	if err := l.Apply(below, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []string{cpu, memory, pids} {
			if err := remove(dir(c) + "/container"); err != nil {
				t.Error(err)
			}
		}
	})
	const mib = 1 << 20
	file := filepath.Join(t.TempDir(), "cached")
	script := fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=24 conv=fsync 2>/dev/null && (sleep 1000 & echo $! && read x; kill $!)", file)
	child(t, []string{dir(memory) + "/container", dir(pids) + "/container"}, script)
	u, err := r.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	if u.PIDs < 2 || u.PIDs > 4 {
		t.Errorf("%d processes", u.PIDs)
	}
	if u.Memory < 24*mib || u.Memory > 200*mib {
		t.Errorf("memory %d", u.Memory)
	}
	if u.Cache < 20*mib || u.Cache > u.Memory {
		t.Skipf("the file system of %s has no page cache that counts: cache %d of %d", file, u.Cache, u.Memory)
	}
	if u.Used() > 16*mib {
		t.Errorf("used %d", u.Used())
	}
}

// TestSystemLimits sets, changes and drops limits, and asks the kernel for them.
func TestSystemLimits(t *testing.T) {
	tree := system(t)
	p, dir := own(t, tree)
	l := limiter(t, tree)
	for _, c := range []struct {
		name                     string
		a                        *policy.Aggregate
		cpuMax, memoryMax, tasks string
	}{
		{"all", &policy.Aggregate{CPUQuota: n(250), MemoryMax: n(64 << 20), MemoryHigh: n(32 << 20), TasksMax: n(50)}, "250000 100000", "67108864", "50"},
		{"lower", &policy.Aggregate{CPUQuota: n(1), MemoryMax: n(32 << 20), TasksMax: n(1)}, "1000 100000", "33554432", "1"},
		{"none", nil, "max 100000", "max", "max"},
		{"most", &policy.Aggregate{CPUQuota: n(17592186044), MemoryMax: n(1<<63 - 1), TasksMax: n(1<<63 - 1)}, "17592186044000 100000", "max", "max"},
		{"higher", &policy.Aggregate{CPUQuota: n(9600), MemoryMax: n(128 << 20)}, "9600000 100000", "134217728", "max"},
	} {
		if err := l.Apply(p, c.a); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := [3]string{cpuMax(t, tree, dir(cpu)), memoryMax(t, tree, dir(memory)), text(t, dir(pids)+"/pids.max")}
		if want := [3]string{c.cpuMax, c.memoryMax, c.tasks}; got != want {
			t.Errorf("%s: %q, want %q", c.name, got, want)
		}
	}
	for _, c := range []string{cpu, memory, pids} {
		if !isDir(filepath.Dir(dir(c))) {
			t.Errorf("%s: no level above", c)
		}
	}
}

// cpuMax returns the quota in v2's form.
func cpuMax(t *testing.T, tree Tree, dir string) string {
	if tree.Unified {
		return text(t, dir+"/cpu.max")
	}
	quota := text(t, dir+"/cpu.cfs_quota_us")
	if quota == "-1" {
		quota = "max"
	}
	return quota + " " + text(t, dir+"/cpu.cfs_period_us")
}

func memoryMax(t *testing.T, tree Tree, dir string) string {
	if tree.Unified {
		return text(t, dir+"/memory.max")
	}
	limit := text(t, dir+"/memory.limit_in_bytes")
	if v, err := strconv.ParseInt(limit, 10, 64); err == nil && v > 1<<62 {
		return "max"
	}
	return limit
}

// TestSystemLimitHolds: more processes than the slice may have are not made.
func TestSystemLimitHolds(t *testing.T) {
	tree := system(t)
	p, dir := own(t, tree)
	if err := limiter(t, tree).Apply(p, &policy.Aggregate{TasksMax: n(3)}); err != nil {
		t.Fatal(err)
	}
	script := "echo $$ > " + dir(pids) + "/cgroup.procs; sleep 0.2 & sleep 0.2 & sleep 0.2 & wait"
	out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
	if err == nil || !strings.Contains(strings.ToLower(string(out)), "fork") {
		t.Errorf("a fourth process: %v, %q", err, out)
	}
}

// TestLegacyMemoryInUse: v1 does not lower a limit below what cannot be reclaimed, and
// the other limits are set even so.
func TestLegacyMemoryInUse(t *testing.T) {
	tree := system(t)
	if tree.Unified {
		t.Skip("v2 takes any limit: it ends processes until it fits")
	}
	if text(t, tree.Root+"/memory/memory.swappiness") != "" && hasSwap(t) {
		t.Skip("with swap there is nothing that cannot be reclaimed")
	}
	p, dir := own(t, tree)
	l := limiter(t, tree)
	if err := l.Apply(p, &policy.Aggregate{MemoryMax: n(256 << 20)}); err != nil {
		t.Fatal(err)
	}
	// The shell holds 32 MiB in a variable.
	child(t, []string{dir(memory)}, `x=$(head -c 33554432 /dev/zero | tr '\0' x); echo ready; read y; echo "$x" > /dev/null`)
	err := l.Apply(p, &policy.Aggregate{MemoryMax: n(4 << 20), TasksMax: n(77)})
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "memory.limit_in_bytes") || !strings.Contains(err.Error(), "more than 4194304 bytes are in use") {
		t.Errorf("lowered: %v", err)
	}
	if got := memoryMax(t, tree, dir(memory)); got != strconv.Itoa(256<<20) {
		t.Errorf("limit %s", got)
	}
	if got := text(t, dir(pids)+"/pids.max"); got != "77" {
		t.Errorf("pids.max %s", got)
	}
}

func hasSwap(t *testing.T) bool {
	return strings.Count(text(t, "/proc/swaps"), "\n") > 0
}

// TestLegacyQuotaBelowAContainers: v1 does not lower a slice's quota below that of a
// cgroup in it.
func TestLegacyQuotaBelowAContainers(t *testing.T) {
	tree := system(t)
	if tree.Unified {
		t.Skip("v2 takes any quota: the lower one counts")
	}
	p, dir := own(t, tree)
	l := limiter(t, tree)
	if err := l.Apply(p, &policy.Aggregate{CPUQuota: n(400)}); err != nil {
		t.Fatal(err)
	}
	below := dir(cpu) + "/container"
	if err := makeDir(below); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(below); err != nil {
			t.Error(err)
		}
	})
	if err := write(below, "cpu.cfs_quota_us", "200000"); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(p, &policy.Aggregate{CPUQuota: n(100)}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "docker update --cpus") {
		t.Errorf("lowered below: %v", err)
	}
	// Another's period goes, whatever quota stands beside it.
	if err := write(dir(cpu), "cpu.cfs_period_us", "50000"); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(p, &policy.Aggregate{CPUQuota: n(300)}); err != nil {
		t.Error(err)
	}
	if got := cpuMax(t, tree, dir(cpu)); got != "300000 100000" {
		t.Errorf("quota %s", got)
	}
}

// TestHybridIsLegacy: a v2 hierarchy beside v1's has not the controllers, and says so.
func TestHybridIsLegacy(t *testing.T) {
	if cgroups.Mode() != cgroups.Hybrid {
		t.Skip("this machine's cgroups are not hybrid")
	}
	tree, err := System()
	if err != nil || tree.Unified {
		t.Fatalf("%+v, %v", tree, err)
	}
	v2 := Tree{Root: tree.Root + "/unified", Unified: true}
	if _, err := NewReader(v2); err == nil || !strings.Contains(err.Error(), "bound to a v1 hierarchy") {
		t.Errorf("v2 without controllers: %v", err)
	}
}

func BenchmarkRead(b *testing.B) {
	tree := system(b)
	p, _ := own(b, tree)
	if err := limiter(b, tree).Apply(p, nil); err != nil {
		b.Fatal(err)
	}
	run := func(name, path string) {
		b.Run(name, func(b *testing.B) {
			r := reader(b, tree)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Read(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("slice", p)
	run("absent", p+"x")
}

// TestSystemComeAndGo reads a slice while it is made and removed: it is there or not,
// and never an error.
func TestSystemComeAndGo(t *testing.T) {
	tree := system(t)
	p, dir := own(t, tree)
	r, l := reader(t, tree), limiter(t, tree)
	stop := make(chan struct{})
	made := make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				close(made)
				return
			default:
			}
			err := l.Apply(p, nil)
			for _, c := range []string{memory, pids, cpu} {
				err = errors.Join(err, remove(dir(c)))
			}
			if err != nil {
				made <- err
				close(made)
				return
			}
		}
	}()
	seen := map[bool]int{}
	for range 3000 {
		u, err := r.Read(p)
		// A busy machine may stop the other goroutine in the middle for longer than a
		// read waits.
		for range 100 {
			if !isMissing(err) {
				break
			}
			u, err = r.Read(p)
		}
		if err != nil {
			t.Error(err)
			break
		}
		seen[u.Exists]++
	}
	close(stop)
	for err := range made {
		t.Error(err)
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Logf("only one of the two was seen: %v", seen)
	}
}
