package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// curlAs asks over a socket as a uid of the host, outside of containers.
func curlAs(t *testing.T, uid uint32, socket, method, path string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(limit(t), "curl", "-s", "-X", method, "--unix-socket", socket, "-w", " %{http_code}", "http://d"+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestWhoIsWhoOnTheHost asks over each socket as each uid.
func TestWhoIsWhoOnTheHost(t *testing.T) {
	container(t, lab.Bob, "who-bob")
	bobs := "/containers/who-bob/json"
	for _, c := range []struct {
		name   string
		uid    uint32
		socket string
		want   string
	}{
		{"alice on hers", lab.Alice.UID, theProxy.Socket(lab.Alice), "belongs to bob"},
		{"bob on his", lab.Bob.UID, theProxy.Socket(lab.Bob), " 200"},
		{"root on alice's is alice", 0, theProxy.Socket(lab.Alice), "belongs to bob"},
		{"root on bob's is bob", 0, theProxy.Socket(lab.Bob), " 200"},
		{"alice on the shared one", lab.Alice.UID, theProxy.Shared(), "belongs to bob"},
		{"bob on the shared one", lab.Bob.UID, theProxy.Shared(), " 200"},
		{"root on the shared one", 0, theProxy.Shared(), " 200"},
		{"a system account on the shared one", 33, theProxy.Shared(), "uid 33 is not served here"},
		{"the overflow uid on the shared one", 65534, theProxy.Shared(), "uid 65534 is not served here"},
	} {
		if out, err := curlAs(t, c.uid, c.socket, "GET", bobs); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v: %.200s, want %q", c.name, err, out, c.want)
		}
	}
	for _, c := range []struct {
		uid    uint32
		socket string
	}{{lab.Bob.UID, theProxy.Socket(lab.Alice)}, {33, theProxy.Socket(lab.Alice)}, {lab.Alice.UID, filepath.Join(theProxy.Dir, "run", "metrics.sock")}} {
		if out, err := curlAs(t, c.uid, c.socket, "GET", "/_ping"); err == nil {
			t.Errorf("uid %d can open %s: %s", c.uid, c.socket, out)
		}
	}
	// The admin on the shared socket may do what nobody else may.
	if out, err := curlAs(t, 0, theProxy.Shared(), "GET", "/containers/json?all=1"); err != nil || !strings.Contains(out, "who-bob") {
		t.Errorf("root's list: %v %s", err, out)
	}
}

// inside asks over a socket that is bound into a container, as a uid inside it.
func inside(t *testing.T, container, uid, method, path string) string {
	t.Helper()
	out, err := theEngine.Docker(limit(t), "exec", "-u", uid, container, "/probe", "/docker.sock", method, path)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAContainersPeerIsItsOwner binds sockets into containers and asks from
// there as every uid that a container's root can take on.
func TestAContainersPeerIsItsOwner(t *testing.T) {
	for _, c := range []struct {
		name, socket, owner string
	}{
		{"bob's container with the shared socket", theProxy.Shared(), "bob"},
		{"bob's container with alice's socket", theProxy.Socket(lab.Alice), "bob"},
		{"alice's container with alice's socket", theProxy.Socket(lab.Alice), "alice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			alices := container(t, lab.Alice, "peer-alice")
			name := "peer-probe"
			// The admin makes the container, so that any socket can be in it.
			admin(t, "run", "-d", "--init", "--name", name, "--label", "ds01.user="+c.owner, "-v", c.socket+":/docker.sock", "-v", probe+":/probe", lab.Image, "sleep", "1000")
			t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", name) })
			for _, uid := range []string{"0", fmt.Sprint(lab.Alice.UID), fmt.Sprint(lab.Bob.UID)} {
				if c.socket != theProxy.Shared() && uid == fmt.Sprint(lab.Bob.UID) {
					continue // the file's mode keeps it out
				}
				got := inside(t, name, uid, "GET", "/containers/peer-alice/json")
				switch {
				case c.owner == "alice" && !strings.Contains(got, alices):
					t.Errorf("uid %s: alice does not reach her own: %.300s", uid, got)
				case c.owner == "bob" && strings.Contains(got, alices):
					t.Errorf("uid %s reached alice's container", uid)
				case c.owner == "bob" && !strings.HasPrefix(got, "403"):
					t.Errorf("uid %s: %.300s", uid, got)
				}
				// Nobody in a container is an admin.
				if got := inside(t, name, uid, "GET", "/swarm/unlockkey"); !strings.Contains(got, "403") {
					t.Errorf("uid %s asked as an admin: %.300s", uid, got)
				}
			}
		})
	}
}

// TestAnUnownedContainersPeerIsNobody keeps a container without a label from
// choosing whom it acts for.
func TestAnUnownedContainersPeerIsNobody(t *testing.T) {
	admin(t, "run", "-d", "--init", "--name", "peer-nobody", "-v", theProxy.Shared()+":/docker.sock", "-v", probe+":/probe", lab.Image, "sleep", "1000")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "peer-nobody") })
	for _, uid := range []string{"0", fmt.Sprint(lab.Alice.UID)} {
		if got := inside(t, "peer-nobody", uid, "GET", "/containers/json"); !strings.Contains(got, "403") || !strings.Contains(got, "without an owner label") {
			t.Errorf("uid %s: %.300s", uid, got)
		}
	}
}

// TestProtectedAndUnowned follows the labels of containers that the admin makes.
func TestProtectedAndUnowned(t *testing.T) {
	admin(t, "run", "-d", "--init", "--name", "infra", "--label", "ds01.user=alice", "--label", "ds01.protected=true", lab.Image, "sleep", "1000")
	admin(t, "run", "-d", "--init", "--name", "legacy", "--label", "aime.mlc.USER=bob", lab.Image, "sleep", "1000")
	admin(t, "run", "-d", "--init", "--name", "unowned", lab.Image, "sleep", "1000")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "infra", "legacy", "unowned") })
	for _, c := range []struct {
		who  lab.Person
		args string
		want string
	}{
		{lab.Alice, "inspect infra --format {{.Name}}", "/infra"},
		{lab.Alice, "stop -t 0 infra", "Error: Container 'infra' is protected infrastructure.\nAdmin access required. Contact system administrator."},
		{lab.Alice, "exec infra true", "protected infrastructure"},
		{lab.Bob, "inspect infra", "Permission denied: this container belongs to alice"},
		{lab.Bob, "exec legacy echo ok", "ok"},
		{lab.Alice, "exec legacy true", "Permission denied: this container belongs to bob"},
		{lab.Alice, "exec unowned echo ok", "ok"},
	} {
		out, _ := theProxy.Docker(limit(t), c.who, strings.Fields(c.args)...)
		if !strings.Contains(out, c.want) {
			t.Errorf("%s: docker %s: %q, want %q", c.who.Name, c.args, out, c.want)
		}
	}
	as(t, lab.Bob, "create", "--name", "legacy-new", lab.Image)
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "legacy-new") })
	for _, c := range []struct{ args, want string }{
		{"ps -a --format {{.Names}}", "legacy-new\nlegacy"}, {"ps --format {{.Names}}", "legacy"},
		{"ps -n 1 --format {{.Names}}", "legacy-new"}, {"ps -a --filter name=legacy-new --format {{.Names}}", "legacy-new"},
	} {
		if got := as(t, lab.Bob, strings.Fields(c.args)...); got != c.want {
			t.Errorf("bob: docker %s: %q, want %q", c.args, got, c.want)
		}
	}
	if out := as(t, lab.Alice, "ps", "-a", "--format", "{{.Names}}"); strings.Contains(out, "legacy") {
		t.Errorf("alice sees %s", out)
	}
	if log := theProxy.Log(); !strings.Contains(log, `"cause":"unowned-container"`) {
		t.Error("the access to the unowned container is not in the log")
	}
}

// ownProxy starts a second proxy before an Engine's socket.
func ownProxy(t *testing.T, socket string, args ...string) *lab.Proxy {
	t.Helper()
	// Short, since a socket's path may have 107 bytes.
	dir, err := os.MkdirTemp("", "ds01p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lab.Unmount(dir)
		os.RemoveAll(dir)
	})
	p, err := lab.StartProxy(limit(t), binary, dir, socket, []lab.Person{lab.Alice, lab.Bob}, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("stop: %v: %s", err, p.Log())
		}
	})
	return p
}

// TestTheEngineGoesAndComes puts a relay before the Engine that can be away.
func TestTheEngineGoesAndComes(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "e.sock")
	p := ownProxy(t, socket)
	sock := p.Socket(lab.Alice)
	down := func(when string) {
		t.Helper()
		got := ask(t, sock, "GET", "/containers/json", "")
		if got.status != http.StatusBadGateway || !strings.Contains(got.body, "cannot reach the Docker Engine at unix://"+socket) {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
	}
	up := func(when string) {
		t.Helper()
		eventually(t, when+": the daemon answers again by itself", func() bool {
			return ask(t, sock, "GET", "/containers/json", "").status == http.StatusOK
		})
	}
	down("before the Engine is there")
	id := container(t, lab.Alice, "comes")
	for _, when := range []string{"when it comes", "when it comes back"} {
		stop := relay(t, socket, theEngine.Socket)
		up(when)
		eventually(t, when+": the index is in step", func() bool {
			synced, err := p.Metric(limit(t), "ds01_proxy_index_synced")
			return err == nil && synced == 1
		})
		if got := ask(t, sock, "GET", "/containers/comes/json", ""); !strings.Contains(got.body, id) {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
		if got := ask(t, p.Socket(lab.Bob), "GET", "/containers/comes/json", ""); got.status != http.StatusForbidden {
			t.Errorf("%s: bob: %d %s", when, got.status, got.body)
		}
		stop()
		down("after it has gone")
	}
	if log := p.Log(); strings.Count(log, "event stream of the Engine ended") < 2 {
		t.Errorf("the log does not tell it: %s", log)
	}
}

// relay passes connections on until it is stopped, and then cuts them all.
func relay(t *testing.T, from, to string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e, err := net.Dial("unix", to)
			if err != nil {
				c.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{c, e}, {e, c}} {
				go func() {
					buf := make([]byte, 32<<10)
					for {
						n, err := pair[0].Read(buf)
						if n > 0 {
							_, _ = pair[1].Write(buf[:n])
						}
						if err != nil {
							pair[1].Close()
							return
						}
					}
				}()
			}
			context.AfterFunc(ctx, func() { c.Close(); e.Close() })
		}
	}()
	var stopped bool
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			l.Close()
			<-done
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestSocketFiles starts over stale sockets, beside a live process and over what
// is no socket, and looks at what is left.
func TestSocketFiles(t *testing.T) {
	p := ownProxy(t, theEngine.Socket)
	info, err := os.Stat(p.Socket(lab.Alice))
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != lab.Alice.UID {
		t.Errorf("alice's socket: %v %v", info.Mode(), err)
	}
	if info, err = os.Stat(p.Shared()); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("shared socket: %v %v", info.Mode(), err)
	}
	for _, dir := range []string{"run", "run/users"} {
		if info, err = os.Stat(filepath.Join(p.Dir, dir)); err != nil || info.Mode().Perm() != 0o755 || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
	args := []string{"serve", "--engine", "unix://" + theEngine.Socket, "--state-dir", filepath.Join(p.Dir, "state2"), "--user", "alice:64001"}
	out, err := exec.CommandContext(limit(t), binary, append(args, "--run-dir", filepath.Join(p.Dir, "run"))...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another ds01-proxy serves from") {
		t.Errorf("a second daemon on one directory: %v %s", err, out)
	}
	if got := ask(t, p.Socket(lab.Alice), "GET", "/_ping", ""); got.status != 200 {
		t.Errorf("after the second daemon: %v", got)
	}

	// Killed, it leaves its files; the next one replaces them.
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = p.Stop()
	if _, err := os.Stat(p.Socket(lab.Alice)); err != nil {
		t.Fatalf("no stale socket: %v", err)
	}
	if err := os.Remove(p.Shared()); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(limit(t), []lab.Person{lab.Alice}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stale sockets are replaced", func() bool {
		c, err := net.Dial("unix", p.Socket(lab.Alice))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{p.Socket(lab.Alice), p.Shared()} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after the end %s is left: %v", path, err)
		}
	}

	// A live socket of somebody else, and a file, are not touched.
	live := filepath.Join(p.Dir, "run", "users", "alice.sock")
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := p.Start(limit(t), []lab.Person{lab.Bob}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon says whose socket it left alone", func() bool {
		return strings.Contains(p.Log(), "another process listens on "+live)
	})
	if got := ask(t, p.Socket(lab.Bob), "GET", "/_ping", ""); got.status != 200 {
		t.Errorf("bob is not served beside it: %v", got)
	}
}

// TestUsersComeAndGo adds an account and takes it away while others are served.
func TestUsersComeAndGo(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yaml")
	name := fmt.Sprintf("ds01t%d", os.Getpid()%100000)
	if err := os.WriteFile(conf, []byte("users:\n  uid_min: 64100\n  uid_max: 64199\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("", "ds01u")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	p, err := lab.StartProxy(limit(t), binary, base, theEngine.Socket, nil, "--config", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	who := lab.Person{Name: name, UID: 64142}
	events, br := open(t, p.Shared(), "GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
	head(t, br)

	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(limit(t), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("useradd", "-M", "-u", fmt.Sprint(who.UID), "-s", "/bin/sh", name)
	removed := false
	t.Cleanup(func() {
		if !removed {
			_ = exec.Command("userdel", name).Run()
		}
	})
	eventually(t, "the new account has a socket", func() bool {
		out, err := curlAs(t, who.UID, p.Socket(who), "GET", "/_ping")
		return err == nil && strings.HasSuffix(out, " 200")
	})
	theirs, br2 := open(t, p.Socket(who), "GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
	head(t, br2)
	run("userdel", name)
	removed = true
	eventually(t, "the socket of the account that is gone is gone", func() bool {
		_, err := os.Lstat(p.Socket(who))
		return os.IsNotExist(err)
	})
	// Its open connection ends, the others live on. What came before was about images,
	// which are everybody's.
	if err := theirs.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	came, err := io.ReadAll(br2)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection of the account that is gone goes on")
	}
	for line := range strings.Lines(string(came)) {
		if strings.Contains(line, `"Type"`) && !strings.Contains(line, `"Type":"image"`) {
			t.Errorf("it got %s", line)
		}
	}
	theirs.Close()
	if err := events.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := br.ReadByte(); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("the admin's stream ended: %v", err)
	}
}

// TestModesOnARealEngine runs a user in monitoring and another in disabled.
func TestModesOnARealEngine(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(conf, []byte("enforcement: monitoring\nenforcement_users: {bob: disabled}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := ownProxy(t, theEngine.Socket, "--config", conf)
	id := container(t, lab.Bob, "mode-bob")
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		if out, err := p.Docker(limit(t), who, "exec", "-i", "mode-bob", "echo", "reached"); err != nil || !strings.Contains(out, "reached") {
			t.Errorf("%s: %v %s", who.Name, err, out)
		}
		if out, err := p.Docker(limit(t), who, "ps", "--no-trunc", "-q"); err != nil || !strings.Contains(out, id) {
			t.Errorf("%s: ps: %v %s", who.Name, err, out)
		}
		if out, err := p.Docker(limit(t), who, "run", "--rm", "--name", "mode-new", lab.Image, "echo", "out"); err != nil || !strings.Contains(out, "out") {
			t.Errorf("%s: run: %v %s", who.Name, err, out)
		}
	}
	out, err := p.Docker(limit(t), lab.Alice, "create", "--name", "mode-alice", "--label", "ds01.user=bob", lab.Image)
	if err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "mode-alice") })
	if got := admin(t, "inspect", "mode-alice", "--format", `{{index .Config.Labels "ds01.user"}} {{.HostConfig.CgroupParent}}`); !strings.HasPrefix(got, "alice /ds01.slice/") {
		t.Errorf("monitoring: created as %s", got)
	}
	eventually(t, "the audit log has would_deny", func() bool {
		text, err := p.Audit()
		return err == nil && strings.Contains(text, `"verdict":"would_deny"`) && strings.Contains(text, "belongs to bob")
	})
	if !strings.Contains(p.Log(), "enforcement is monitoring") {
		t.Error("the log does not warn that nothing is enforced")
	}
}
