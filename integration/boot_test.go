package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestBindsAtBoot ends the daemon and the Engine, loses what a reboot loses, and
// starts both again: a container that the Engine starts by itself has alice's files
// where the daemon was first, and nothing of anybody's where it was not.
func TestBindsAtBoot(t *testing.T) {
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
	mine, err := scratch.Make("h", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(mine, int(lab.Alice.UID), int(lab.Alice.UID)); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(mine, "mine"), "mine", 0o600, lab.Alice.UID)
	conf := filepath.Join(scratch.Dir, "c.yaml")
	text := fmt.Sprintf("profile: boots\nprofiles:\n  boots:\n    from: confined\n    restart: [always]\n    binds: [{path: %s}]\n", mine)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := ownProxy(t, e.Socket, "--config", conf)
	people := []lab.Person{lab.Alice, lab.Bob}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	docker := func(args ...string) (string, error) { return p.Docker(limit(t), lab.Alice, args...) }
	// It says at each start what it has, and puts something there.
	const script = `echo "begins: $(ls -x /d): $(cat /d/mine): $(stat -c %u /d)"; touch /d/made; sleep 100000`
	for name, bind := range map[string]string{"boot": mine + ":/d", "boot-file": mine + "/mine:/d/mine"} {
		out, err := docker("run", "-d", "--init", "--restart", "always", "--name", name, "-v", bind, lab.Image, "sh", "-c", script)
		if err != nil {
			t.Fatal(out)
		}
	}
	lines := func(name string, n int) []string {
		t.Helper()
		var begun []string
		eventually(t, fmt.Sprintf("%s has begun %d times", name, n), func() bool {
			out, err := e.Docker(limit(t), "logs", name)
			begun = nil
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "begins:") {
					begun = append(begun, strings.TrimSpace(line))
				}
			}
			return err == nil && len(begun) >= n
		})
		return begun
	}
	has := func(name string, n int) {
		t.Helper()
		if last := lines(name, n)[n-1]; !strings.Contains(last, ": mine: 0") {
			t.Errorf("%s, at its start %d: %q", name, n, last)
		}
	}
	has("boot", 1)
	has("boot-file", 1)
	// reboot ends both, the daemon suddenly, and loses the mounts and what was in the
	// directory of the system's that does not last.
	reboot := func() {
		t.Helper()
		must(p.Kill(), e.Halt())
		lab.Unmount(p.Dir)
		must(os.RemoveAll(filepath.Join(p.Dir, "run")))
	}
	reboot()
	must(p.Start(limit(t), people))
	must(e.Start(limit(t)))
	has("boot", 2)
	has("boot-file", 2)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mine, "made"), &st); err != nil || st.Uid != lab.Alice.UID {
		t.Errorf("what the container made is %d's, %v", st.Uid, err)
	}
	if err := os.Remove(filepath.Join(mine, "made")); err != nil {
		t.Error(err)
	}
	// The other way round, the container has none of it, writes nothing of it, and gets
	// it back when alice starts it.
	reboot()
	must(e.Start(limit(t)))
	if last := lines("boot", 3)[2]; last != "begins: : : 0" {
		t.Errorf("the Engine was first: %q", last)
	}
	if _, err := os.Stat(filepath.Join(mine, "made")); err == nil {
		t.Error("the container wrote to alice's directory all the same")
	}
	must(p.Start(limit(t), people))
	if out, err := docker("restart", "-t", "0", "boot", "boot-file"); err != nil {
		t.Error(out)
	}
	has("boot", 4)
	// There was a directory in the file's place, and the Engine could not start it.
	has("boot-file", 3)
	if err := unix.Stat(filepath.Join(mine, "made"), &st); err != nil || st.Uid != lab.Alice.UID {
		t.Errorf("what the container made in the end is %d's, %v", st.Uid, err)
	}
	// What was written to the empty directory goes with the container.
	if out, err := docker("rm", "-f", "boot", "boot-file"); err != nil {
		t.Error(out)
	}
	eventually(t, "the stage is empty", func() bool {
		left, err := os.ReadDir(filepath.Join(p.Dir, "run", "binds"))
		return err == nil && len(left) == 0
	})
}
