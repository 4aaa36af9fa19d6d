package units

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/policy"
)

// pid1 makes a systemd the init of namespaces of its own, in a cgroup of its own, in
// which nothing but our units runs. Arguments: the cgroup's directory, that of unit files.
const pid1 = `
echo 0 > $1/cgroup.procs && exec unshare -C sh -ec '
mount --make-rprivate /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
for d in /etc /proc/sys; do mount --bind $d $d; mount -o remount,ro,bind $d; done
export container=test SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:$1
exec $2 --system --unit=empty.target --show-status=false --log-target=null' sh $2 $3`

// live is a real systemd, and the cgroup2 directory that is its root.
type live struct {
	pid  int
	root string
	dir  string
}

func startLive(t *testing.T) *live {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root starts an init of its own")
	}
	bin := "/lib/systemd/systemd"
	if _, err := os.Stat(bin); err != nil {
		t.Skipf("no systemd to start: %v", err)
	}
	mounted := ""
	for _, d := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(d + "/cgroup.controllers"); err == nil {
			mounted = d
		}
	}
	if mounted == "" {
		t.Skip("no cgroup2 is mounted below /sys/fs/cgroup; systemd needs one of its own")
	}
	l := &live{root: fmt.Sprintf("%s/ds01units%d_%d", mounted, os.Getpid(), time.Now().UnixNano()), dir: t.TempDir()}
	if err := os.WriteFile(l.dir+"/empty.target", []byte("[Unit]\nDefaultDependencies=no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, l.root) })
	cmd := exec.Command("/bin/sh", "-c", pid1, "sh", l.root, l.dir, bin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	l.pid = cmd.Process.Pid
	ready := "/proc/" + strconv.Itoa(l.pid) + "/root/run/systemd/private"
	for range 200 {
		if _, err := os.Stat(ready); err == nil {
			return l
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Skipf("no systemd starts in namespaces of its own here: %s", &stderr)
	return nil
}

// properties returns what systemd knows of a slice.
func (l *live) properties(t *testing.T, unit string) map[string]any {
	t.Helper()
	conn, err := systemd.NewSystemdConnectionContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	all, err := conn.GetUnitTypePropertiesContext(t.Context(), unit, "Slice")
	if err != nil {
		t.Fatal(err)
	}
	state, err := conn.GetUnitPropertyContext(t.Context(), unit, "ActiveState")
	if err != nil {
		t.Fatal(err)
	}
	all["ActiveState"] = state.Value.Value()
	return all
}

func removeTree(t *testing.T, root string) {
	var err error
	for range 100 {
		var dirs []string
		err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			err = errors.Join(err, unix.Rmdir(dirs[i]))
		}
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left behind: %v", err)
}

// inside, in the environment, tells this binary that it runs beside the other systemd,
// and where its unit files are. systemd believes no peer of another pid namespace.
const inside = "DS01_TEST_SYSTEMD_UNITS"

// TestRealSystemd: limits reach a systemd, live slices, and stay over a reload.
func TestRealSystemd(t *testing.T) {
	if dir := os.Getenv(inside); dir != "" {
		(&live{root: "/sys/fs/cgroup", dir: dir}).test(t)
		return
	}
	l := startLive(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(l.pid), "-m", "-p", "-n", "-C", "--", exe, "-test.run=^TestRealSystemd$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+l.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: TestRealSystemd/by_file") {
		t.Errorf("nothing was tested:\n%s", out)
	}
}

func (l *live) test(t *testing.T) {
	for _, c := range []struct{ name, dir, group string }{{"transient", "", "student"}, {"by file", l.dir, "staff"}} {
		t.Run(c.name, func(t *testing.T) {
			dials := 0
			s := &Systemd{Dir: c.dir, Dial: func(ctx context.Context) (Bus, error) { dials++; return DialSystemd(ctx) }}
			unit := userSlice(c.group, "alice")
			for _, want := range []*policy.Aggregate{all, nil, {CPUQuota: n(1), MemoryMax: n(1 << 30), TasksMax: n(7)}, all} {
				if err := s.Ensure(t.Context(), c.group, "alice", want); err != nil {
					t.Fatal(err)
				}
				l.check(t, unit, want)
			}
			if dials != 1 {
				t.Errorf("dialled %d times", dials)
			}
			if _, err := os.Stat(l.root + CgroupPath(c.group, "alice")); err != nil {
				t.Errorf("the slice's cgroup: %v", err)
			}
			if got := l.properties(t, unit)["ControlGroup"]; got != CgroupPath(c.group, "alice") {
				t.Errorf("cgroup %v", got)
			}

			// An admin reloads systemd; the connection breaks.
			if err := s.bus.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.check(t, unit, all)
			_ = s.bus.(*bus).Close()
			if err := s.Ensure(t.Context(), c.group, "alice", nil); err != nil || dials != 2 {
				t.Fatalf("after the connection broke: %v, %d dials", err, dials)
			}
			l.check(t, unit, nil)
		})
	}

	// A slice that has a file already, of which nothing runs.
	files, err := Render("late", "bob", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := install(l.dir, f); err != nil {
			t.Fatal(err)
		}
	}
	s := &Systemd{Dial: DialSystemd}
	if err := s.Ensure(t.Context(), "late", "bob", all); err != nil {
		t.Fatal(err)
	}
	l.check(t, userSlice("late", "bob"), all)
}

func (l *live) check(t *testing.T, unit string, a *policy.Aggregate) {
	t.Helper()
	got := l.properties(t, unit)
	for _, p := range limitProperties(a) {
		if got[p.Name] != p.Value.Value() {
			t.Errorf("%s: %s is %v, want %v", unit, p.Name, got[p.Name], p.Value)
		}
	}
	for _, p := range accountingProperties() {
		if got[p.Name] != true {
			t.Errorf("%s: %s is %v", unit, p.Name, got[p.Name])
		}
	}
	if got["ActiveState"] != "active" {
		t.Errorf("%s is %v", unit, got["ActiveState"])
	}
	if uint64(math.MaxUint64) == got["MemoryMax"] {
		return
	}
	if b, err := os.ReadFile(l.root + got["ControlGroup"].(string) + "/memory.max"); err == nil && strings.TrimSpace(string(b)) != fmt.Sprint(got["MemoryMax"]) {
		t.Errorf("%s: memory.max is %s, want %v", unit, b, got["MemoryMax"])
	}
}
