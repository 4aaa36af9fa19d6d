package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// rootsOwn is what only root may read, and hers what alice has in its place.
const rootsOwn, hers = "only of root", "only of alice"

// A side is one way to the Engine: its own socket, or alice's.
type side struct {
	name   string
	socket string
	docker func(args ...string) (string, error)
}

// sides starts an Engine of the test's own, and with begin a proxy before it. Until then
// nothing has touched its mounts.
func sides(t *testing.T, config string) (raw side, begin func() side) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ds01l")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lab.Unmount(dir)
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := lab.StartEngine(limit(t), mkdir(dir, "e"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Import(limit(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	raw = side{"the raw socket", e.Socket, func(args ...string) (string, error) { return e.Docker(ctx, args...) }}
	return raw, func() side {
		conf := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		p := ownProxy(t, e.Socket, "--config", conf)
		return side{"the proxy", p.Socket(lab.Alice), func(args ...string) (string, error) { return p.Docker(ctx, lab.Alice, args...) }}
	}
}

// swapper builds the program that swaps, and an image with it.
func swapper(t *testing.T, s side) {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "swap")
	build := exec.Command("go", "build", "-o", tool, "./lab/swap")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	for _, args := range [][]string{
		{"create", "--name", "tool", lab.Image}, {"cp", tool, "tool:/bin/swap"}, {"commit", "tool", "swap:local"}, {"rm", "tool"},
	} {
		if out, err := s.docker(args...); err != nil {
			t.Fatalf("%v: %s", args, out)
		}
	}
}

// marked is a directory of root's with many files that only root may read.
func marked(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "marked")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i := range 400 {
		put(t, filepath.Join(dir, fmt.Sprintf("f%03d", i)), rootsOwn+" ", 0o600, 0)
	}
	return dir
}

// TestCommitFollowsNoLinks archives a directory that is swapped for a link meanwhile.
func TestCommitFollowsNoLinks(t *testing.T) {
	raw, begin := sides(t, "")
	target := marked(t)
	fill := "mkdir /d; echo -n '" + hers + "' >/d/f399; dd if=/dev/zero of=/d/00big bs=1M count=300 2>/dev/null; touch /ready; until [ -e /go ]; do usleep 5000; done; "
	paused := func(root string) func(s side) func() {
		return func(s side) func() {
			_, _ = s.docker("run", "-d", "--name", "victim", lab.Image, "sh", "-c", strings.ReplaceAll(fill, "until [ -e /go ]; do usleep 5000; done; ", "exec sleep 1000"))
			_, _ = s.docker("run", "-d", "--name", "helper", "--pid", "container:victim", lab.Image, "sh", "-c",
				root+"until [ -e /go ]; do usleep 5000; done; mv $R/d $R/d.old; ln -s "+target+" $R/d; sleep 1000")
			return func() { _, _ = s.docker("rm", "-f", "victim", "helper") }
		}
	}
	attacks := map[string]func(s side) func(){
		"by itself": func(s side) func() {
			_, _ = s.docker("run", "-d", "--name", "victim", lab.Image, "sh", "-c", fill+"mv /d /d.old; ln -s "+target+" /d; sleep 1000")
			return func() { _, _ = s.docker("rm", "-f", "victim") }
		},
		"by another container": paused("R=/proc/1/root; "),
		"by a kept directory":  paused("cd /proc/1/root; R=.; "),
	}
	stolen := func(s side, how string, tries int) (won int) {
		for range tries {
			end := attacks[how](s)
			eventually(t, "the container is ready", func() bool {
				_, err := s.docker("exec", "victim", "test", "-e", "/ready")
				return err == nil
			})
			who, args := "helper", []string{"commit", "victim", "stolen:x"}
			if how == "by itself" {
				who, args = "victim", []string{"commit", "--pause=false", "victim", "stolen:x"}
			}
			done := make(chan struct{})
			go func() {
				_, _ = s.docker(args...)
				close(done)
			}()
			time.Sleep(100 * time.Millisecond)
			_, _ = s.docker("exec", who, "touch", "/go")
			<-done
			end()
			out, _ := s.docker("run", "--rm", "stolen:x", "sh", "-c", "cat /d/f*")
			if strings.Contains(out, rootsOwn) {
				won++
			}
			_, _ = s.docker("rmi", "stolen:x")
		}
		return won
	}
	for how := range attacks {
		if won := stolen(raw, how, 4); won == 0 {
			t.Errorf("%s, %s: it does not work at all", raw.name, how)
		} else {
			t.Logf("%s, %s: %d of 4", raw.name, how, won)
		}
	}
	s := begin()
	for how := range attacks {
		if won := stolen(s, how, 7); won > 0 {
			t.Errorf("%s, %s: %d of 7", s.name, how, won)
		}
	}
}

// TestCommittedLayersAreTheSame commits a container with all that a layer may hold, on
// the raw socket before there is a proxy and by the proxy then.
func TestCommittedLayersAreTheSame(t *testing.T) {
	raw, begin := sides(t, "")
	make := "mkdir -p /a/b /o; echo 1 >/a/f; ln /a/f /a/hard; ln -s f /a/soft; ln -s /etc /a/dir; ln -s nowhere /a/dangling; mkfifo /a/p; " +
		"chmod 4755 /a/f; chown 12:34 /a/b; rm /bin/wget; rm -rf /home; mkdir /home; echo new >/home/n; touch -h -d @1 /a/soft; exec sleep 1000"
	if out, err := raw.docker("run", "-d", "--name", "cc", "--label", "ds01.user=alice", lab.Image, "sh", "-c", make); err != nil {
		t.Fatal(out)
	}
	time.Sleep(time.Second)
	merged, err := raw.docker("inspect", "-f", "{{.GraphDriver.Data.MergedDir}}", "cc")
	if err != nil {
		t.Fatal(merged)
	}
	layersOf := func(s side, name string) string {
		if out, err := s.docker("commit", "cc", name); err != nil {
			t.Fatalf("%s: %s", s.name, out)
		}
		out, err := s.docker("inspect", "-f", "{{json .RootFS.Layers}}", name)
		if err != nil {
			t.Fatalf("%s: %s", s.name, out)
		}
		return out
	}
	want := layersOf(raw, "before")
	s := begin()
	if got := layersOf(s, "after"); got != want {
		t.Errorf("%s, not %s", got, want)
	}
	// The container lives on, can be started anew, and goes.
	for _, args := range [][]string{{"exec", "cc", "cat", "/a/soft"}, {"restart", "-t", "0", "cc"}, {"exec", "cc", "cat", "/etc/hosts"}, {"rm", "-f", "cc"}} {
		if out, err := s.docker(args...); err != nil {
			t.Errorf("%v: %s", args, out)
		}
	}
	if _, err := os.Stat(filepath.Dir(strings.TrimSpace(merged))); !os.IsNotExist(err) {
		t.Errorf("the layer is left: %v", err)
	}
}

// heads asks for a path in a container as fast as it can, until done or the time is up.
func heads(t *testing.T, s side, name string, within time.Duration, done func() bool) (tries int, won bool) {
	t.Helper()
	c := lab.HTTPClient(s.socket)
	defer c.CloseIdleConnections()
	for end := time.Now().Add(within); time.Now().Before(end) || tries < 20; tries++ {
		req, err := http.NewRequestWithContext(limit(t), http.MethodHead, "http://docker/containers/"+name+"/archive?path=/bin/busybox", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
		}
		if done() {
			return tries + 1, true
		}
	}
	return tries, false
}

// TestArchivesMountNowhereElse has a container swap a directory for a link to one of the
// host's while the Engine mounts the container's files there.
func TestArchivesMountNowhereElse(t *testing.T) {
	raw, begin := sides(t, "")
	swapper(t, raw)
	attack := func(s side, script string, args ...string) (target string, end func()) {
		target, err := os.MkdirTemp("", "lured")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			lab.Unmount(target)
			os.RemoveAll(target)
		})
		all := append(append([]string{"run", "-d", "--name", "lure"}, args...), "swap:local", "sh", "-c", strings.ReplaceAll(script, "TARGET", target))
		if out, err := s.docker(all...); err != nil {
			t.Fatalf("%s: %s", s.name, out)
		}
		time.Sleep(500 * time.Millisecond)
		return target, func() {
			_, _ = s.docker("rm", "-f", "lure")
			_, _ = s.docker("volume", "rm", "lure", "lured")
		}
	}
	full := func(dir string) func() bool {
		return func() bool {
			list, err := os.ReadDir(dir)
			return err == nil && len(list) > 0
		}
	}
	attacks := map[string][]string{
		"in the container": {"ln -s TARGET /y; exec swap /x /y", "-v", "lure:/x/sub"},
		"in a volume":      {"ln -s TARGET /v/y; exec swap /v/d /v/y", "-v", "lure:/v", "-v", "lured:/v/d/sub"},
	}
	took := make(map[string]time.Duration)
	for how, a := range attacks {
		target, end := attack(raw, a[0], a[1:]...)
		began := time.Now()
		tries, won := heads(t, raw, "lure", 30*time.Second, full(target))
		end()
		took[how] = time.Since(began)
		if !won {
			t.Errorf("%s, %s: it does not work at all, in %d tries", raw.name, how, tries)
			continue
		}
		t.Logf("%s, %s: after %d tries, %v", raw.name, how, tries, took[how])
	}
	s := begin()
	for how, a := range attacks {
		target, end := attack(s, a[0], a[1:]...)
		tries, won := heads(t, s, "lure", max(2*took[how], 5*time.Second), full(target))
		end()
		if won {
			t.Errorf("%s, %s: after %d tries", s.name, how, tries)
		}
		t.Logf("%s, %s: %d tries", s.name, how, tries)
	}
}
