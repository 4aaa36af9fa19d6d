package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
	"github.com/ds01/ds01-proxy/policy"
)

// slowImage has, at /data, what takes seconds to copy, then the directory zz, and
// declaredImage the same as a volume.
const (
	slowImage     = "copyup:slow"
	declaredImage = "copyup:declared"
)

// withSlowImages makes both.
func withSlowImages(t *testing.T) {
	t.Helper()
	tidy(t, "copyup-prep")
	admin(t, "run", "--name", "copyup-prep", lab.Image, "sh", "-c",
		`mkdir -p /data/00 /data/zz; echo x >/data/zz/planted; i=0; while [ $i -lt 8000 ]; do : >/data/00/$i; i=$((i+1)); done`)
	admin(t, "commit", "copyup-prep", slowImage)
	admin(t, "commit", "-c", "VOLUME /data", "copyup-prep", declaredImage)
	untag(t, slowImage)
	untag(t, declaredImage)
}

// A copyWay is a Docker socket that an attack is tried on.
type copyWay struct {
	socket string
	docker func(args ...string) (string, error)
}

// asleep waits for the first file of a copy, and then plants a link in its way.
func asleep(dir string) string {
	return "while [ ! -e /v/00 ]; do usleep 1000; done; ln -s " + dir + " /v/zz; sleep 1000"
}

// A copyAttack has the Engine copy to a directory of the host by links in a volume.
type copyAttack struct {
	name string
	run  func(t *testing.T, w copyWay, dir string)
}

var copyAttacks = []copyAttack{
	{"a volume that a container has already", func(t *testing.T, w copyWay, dir string) {
		_, _ = w.docker("volume", "create", "copyup-v")
		_, _ = w.docker("run", "-d", "--name", "copyup-h", "-v", "copyup-v:/v:nocopy", lab.Image, "sh", "-c", asleep(dir))
		_, _ = w.docker("create", "--name", "copyup-m", "-v", "copyup-v:/data", slowImage)
	}},
	{"a volume that had a container", func(t *testing.T, w copyWay, dir string) {
		_, _ = w.docker("run", "-d", "--name", "copyup-h", "-v", "copyup-v:/v:nocopy", lab.Image, "sh", "-c", asleep(dir))
		_, _ = w.docker("create", "--name", "copyup-m", "--mount", "source=copyup-v,target=/data", slowImage)
	}},
	{"while the first container is created", func(t *testing.T, w copyWay, dir string) {
		_, _ = w.docker("volume", "create", "copyup-v")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = w.docker("create", "--name", "copyup-m", "-v", "copyup-v:/data", slowImage)
		}()
		copying(t, "copyup-v")
		_, _ = w.docker("run", "-d", "--name", "copyup-h", "-v", "copyup-v:/v:nocopy", lab.Image, "sh", "-c", asleep(dir))
		<-done
	}},
	{"an anonymous volume", func(t *testing.T, w copyWay, dir string) {
		anonymous(t, w, dir, "-v", "/data", slowImage)
	}},
	{"an image's volume", func(t *testing.T, w copyWay, dir string) {
		anonymous(t, w, dir, declaredImage)
	}},
	{"after the client has left", func(t *testing.T, w copyWay, dir string) {
		_, _ = w.docker("volume", "create", "copyup-v")
		body := `{"Image":"` + slowImage + `","HostConfig":{"Binds":["copyup-v:/data"]}}`
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "POST /containers/create?name=copyup-m HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		copying(t, "copyup-v")
		c.Close()
		_, _ = w.docker("run", "-d", "--name", "copyup-h", "-v", "copyup-v:/v:nocopy", lab.Image, "sh", "-c", asleep(dir))
		eventually(t, "the container is made", func() bool {
			_, err := theEngine.Docker(limit(t), "inspect", "copyup-m")
			return err == nil
		})
	}},
}

// anonymous attacks the volume that comes to be with a container.
func anonymous(t *testing.T, w copyWay, dir string, args ...string) {
	t.Helper()
	volumes := func() []string {
		out, err := w.docker("volume", "ls", "-q")
		if err != nil {
			t.Fatal(out)
		}
		return strings.Fields(out)
	}
	before := volumes()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = w.docker(append([]string{"create", "--name", "copyup-m"}, args...)...)
	}()
	var name string
	eventually(t, "there is a new volume", func() bool {
		for _, v := range volumes() {
			if !slices.Contains(before, v) {
				name = v
			}
		}
		return name != ""
	})
	if !policy.AnonymousName(name) {
		t.Errorf("the Engine calls a volume %q", name)
	}
	_, _ = w.docker("run", "-d", "--name", "copyup-h", "-v", name+":/v:nocopy", lab.Image, "sh", "-c", asleep(dir))
	<-done
}

// copying waits until the Engine copies into a volume.
func copying(t *testing.T, name string) {
	t.Helper()
	at := admin(t, "volume", "inspect", name, "--format", "{{.Mountpoint}}")
	eventually(t, "the Engine copies", func() bool {
		_, err := os.Stat(filepath.Join(at, "00"))
		return err == nil
	})
}

// TestCopyUpWritesNowhereElse tries on the Engine's own socket, where it works, and on
// alice's, to have the Engine copy an image's content into a directory of root's.
func TestCopyUpWritesNowhereElse(t *testing.T) {
	withSlowImages(t)
	raw := copyWay{theEngine.Socket, func(args ...string) (string, error) { return theEngine.Docker(limit(t), args...) }}
	alices := copyWay{theProxy.Socket(lab.Alice), func(args ...string) (string, error) { return theProxy.Docker(limit(t), lab.Alice, args...) }}
	for _, attack := range copyAttacks {
		for _, w := range []copyWay{raw, alices} {
			should := w.socket == raw.socket
			worked := tryCopy(t, attack, w)
			for range 4 {
				// A copy may be over on a busy machine before the other container runs.
				if worked || !should {
					break
				}
				worked = tryCopy(t, attack, w)
			}
			if worked != should {
				t.Errorf("%s: on %s it worked: %t", attack.name, w.socket, worked)
			}
		}
	}
	keepsNobodyElse(t)
}

// tryCopy tries an attack once, and reports whether it worked.
func tryCopy(t *testing.T, attack copyAttack, w copyWay) bool {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	attack.run(t, w, dir)
	for _, name := range []string{"copyup-m", "copyup-h"} {
		if _, err := theEngine.Docker(limit(t), "inspect", name); err != nil {
			t.Errorf("%s, on %s: there is no container %s", attack.name, w.socket, name)
		}
	}
	_, err := os.Stat(filepath.Join(dir, "planted"))
	_, _ = theEngine.Docker(context.Background(), "rm", "-f", "-v", "copyup-m", "copyup-h")
	_, _ = theEngine.Docker(context.Background(), "volume", "rm", "-f", "copyup-v")
	return err == nil
}

// TestVolumesAreFilledAsUsual makes and uses volumes as clients do.
func TestVolumesAreFilledAsUsual(t *testing.T) {
	const image, declared = "copyup:small", "copyup:small-declared"
	tidy(t, "copyup-prep", "copyup-composed", "copyup-new", "copyup-mounted", "copyup-a", "copyup-b", "copyup-refused")
	admin(t, "run", "--name", "copyup-prep", lab.Image, "sh", "-c", "mkdir /data && echo content >/data/f")
	admin(t, "commit", "copyup-prep", image)
	admin(t, "commit", "-c", "VOLUME /data", "copyup-prep", declared)
	untag(t, image)
	untag(t, declared)
	shows := func(args ...string) {
		t.Helper()
		all := append([]string{"run", "--rm"}, args...)
		if got := as(t, lab.Alice, append(all, "cat", "/data/f")...); got != "content" {
			t.Errorf("%v: %q", args, got)
		}
	}
	as(t, lab.Alice, "volume", "create", "copyup-composed")
	shows("-v", "copyup-composed:/data", image)
	shows("-v", "copyup-composed:/data", lab.Image)
	shows("-v", "copyup-new:/data", image)
	shows("-v", "copyup-new:/data:ro", lab.Image)
	shows("--mount", "source=copyup-mounted,target=/data", image)
	shows("-v", "/data", image)
	shows(declared)
	named := as(t, lab.Alice, "volume", "create")
	tidy(t, named)
	shows("-v", named+":/data", image)
	refused(t, lab.Alice, "rule bind-source", "run", "-v", "copyup-refused:/data", "-v", "/etc:/x", image)
	shows("-v", "copyup-refused:/data", image)
	// Containers of one brand-new volume, all at once.
	done := make(chan string)
	for range 4 {
		go func() {
			out, _ := theProxy.Docker(context.Background(), lab.Alice, "run", "--rm", "-v", "copyup-a:/data", image, "cat", "/data/f")
			done <- strings.TrimSpace(out)
		}()
	}
	for range 4 {
		if got := <-done; got != "content" {
			t.Errorf("at once: %q", got)
		}
	}
	// Only the first container fills one.
	as(t, lab.Alice, "run", "--rm", "-v", "copyup-b:/empty", lab.Image, "true")
	if out, err := theProxy.Docker(limit(t), lab.Alice, "run", "--rm", "-v", "copyup-b:/data", image, "cat", "/data/f"); err == nil {
		t.Errorf("the second container filled a volume: %s", out)
	}
}

// keepsNobodyElse has bob's volume and another one of alice's used during a long copy.
func keepsNobodyElse(t *testing.T) {
	t.Helper()
	tidy(t, "copyup-m", "copyup-v", "copyup-other", "copyup-bobs")
	as(t, lab.Alice, "volume", "create", "copyup-v")
	done := make(chan time.Time, 1)
	go func() {
		_, _ = theProxy.Docker(context.Background(), lab.Alice, "create", "--name", "copyup-m", "-v", "copyup-v:/data", slowImage)
		done <- time.Now()
	}()
	copying(t, "copyup-v")
	as(t, lab.Alice, "create", "--name", "copyup-other", "-v", "copyup-other:/x", lab.Image)
	as(t, lab.Bob, "create", "--name", "copyup-bobs", "-v", "copyup-bobs:/x", lab.Image)
	if now := time.Now(); now.After(<-done) {
		t.Error("others waited for a copy")
	}
}
