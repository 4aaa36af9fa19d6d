package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// handing has a process of alice's, on the host, hand an open directory to whoever
// connects to a socket in her home: below it is a file that root alone may read. It
// returns the command that a container with her home at /d takes it by.
func handing(t *testing.T, home string) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "handed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "marker"), "root's own", 0o600, 0)
	tool := filepath.Join(home, "passfd")
	build := exec.Command("go", "build", "-o", tool, "./lab/passfd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if err := os.Chmod(tool, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(home, "hand.sock")
	giver := exec.Command(tool, "give", socket, dir)
	giver.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lab.Alice.UID, Gid: lab.Alice.UID}}
	if err := giver.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = giver.Process.Kill()
		_ = giver.Wait()
	})
	eventually(t, "the socket is there", func() bool {
		info, err := os.Stat(socket)
		return err == nil && info.Mode().Perm() == 0o777
	})
	return []string{"/d/passfd", "take", "/d/hand.sock", "marker"}
}

// TestAHandedDescriptorOnTheHostsUsers has container root read what only root may, by a
// directory that alice's process on the host hands it: open wherever the Engine maps no
// users, and closed by container_root: deny.
func TestAHandedDescriptorOnTheHostsUsers(t *testing.T) {
	p, _ := withHomes(t, "")
	mine := home(lab.Alice)
	take := handing(t, mine)
	if out, err := theEngine.Docker(limit(t), append([]string{"run", "--rm", "-v", mine + ":/d", lab.Image}, take...)...); err != nil || out != "root's own" {
		t.Errorf("the raw socket: %s %v", out, err)
	}
	if out, ok := runs(t, p, append([]string{"-v", mine + ":/d", lab.Image}, take...)...); !ok || out != "root's own" {
		t.Errorf("container_root: allow: %s", out)
	}
	if log := p.Log(); !strings.Contains(log, "the Engine maps no users") || !strings.Contains(log, `"cause":"container-root"`) {
		t.Errorf("it is not loud: %s", log)
	}
}

// TestContainerRootDenied runs containers as nobody but their user.
func TestContainerRootDenied(t *testing.T) {
	p, _ := withHomes(t, "container_root: deny\n")
	classic(t)
	mine := home(lab.Alice)
	take := handing(t, mine)
	self := fmt.Sprintf("%d:%d", lab.Alice.UID, lab.Alice.UID)
	for _, args := range [][]string{
		{}, {"--user", "0"}, {"--user", "1000:1000"}, {"--user", fmt.Sprint(lab.Alice.UID)}, {"--user", fmt.Sprintf("%d:0", lab.Alice.UID)},
		{"--user", fmt.Sprintf("%d:%d", lab.Bob.UID, lab.Bob.UID)}, {"--user", self, "--cap-add", "DAC_OVERRIDE"}, {"--user", self, "--group-add", "0"},
		{"--user", self, "--group-add", "root"}, {"--user", self, "--security-opt", "no-new-privileges=false"}, {"--user", "0" + self},
	} {
		out, ok := runs(t, p, append(append(args, "-v", mine+":/d", lab.Image), take...)...)
		if ok || !strings.Contains(out, "rule container-root") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if out, ok := runs(t, p, append([]string{"--user", self, "-v", mine + ":/d", lab.Image}, take...)...); ok || !strings.Contains(out, "permission denied") {
		t.Errorf("as herself: %s", out)
	}
	out, ok := runs(t, p, "--user", self, "-v", mine+":/d", lab.Image, "sh", "-c", "id; grep -E 'Cap(Bnd|Eff|Prm|Amb)|NoNewPrivs|^Groups' /proc/self/status; echo x >/d/mine")
	if !ok || strings.Count(out, "0000000000000000") != 4 || !strings.Contains(out, "NoNewPrivs:\t1") || strings.Contains(out, "Groups:\t0") {
		t.Errorf("as herself: %s", out)
	}
	tidy(t, "herself")
	on := func(args ...string) string {
		out, _ := p.Docker(limit(t), lab.Alice, args...)
		return out
	}
	on("run", "-d", "--init", "--name", "herself", "--user", self, "-v", mine+":/d", lab.Image, "sleep", "1000")
	for user, want := range map[string]string{"0": "rule exec-user", "root": "rule exec-user", "1000": "rule exec-user", self: "uid=64001 gid=64001"} {
		if out := on("exec", "--user", user, "herself", "id"); !strings.Contains(out, want) {
			t.Errorf("exec as %s: %s", user, out)
		}
	}
	if out := on("exec", "herself", "id"); !strings.Contains(out, "uid=64001 gid=64001") {
		t.Errorf("exec: %s", out)
	}
	if out := on("build", dockerfile(t, lab.Alice, "rootsteps", "FROM busybox:local\nRUN id\n")); !strings.Contains(out, "rule container-root") {
		t.Errorf("build: %s", out)
	}
	for _, path := range []string{"/build?version=2", "/session", "/grpc"} {
		if got := ask(t, p.Socket(lab.Alice), "POST", path, "", "Upgrade", "h2c", "Connection", "Upgrade"); got.status != 403 || !strings.Contains(got.body, "rule container-root") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// remapped starts an Engine that maps users, and a proxy before it whose users may bind
// what is below homes.
func remapped(t *testing.T) (p *lab.Proxy, on func(args ...string) (string, bool)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ds01u")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lab.Unmount(dir)
		os.RemoveAll(dir)
	})
	ed := mkdir(dir, "e")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := lab.StartRemapped(limit(t), ed)
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
	inside, err := e.Inside(binary)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "c.yaml")
	pd := mkdir(dir, "p")
	text := fmt.Sprintf("container_root: deny\nprofile: homes\nprofiles:\n  homes:\n    from: confined\n    binds: [{path: %s}]\n", filepath.Join(pd, "homes"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err = lab.StartProxy(limit(t), inside, pd, e.Socket, []lab.Person{lab.Alice, lab.Bob}, "--config", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("stop: %v: %s", err, p.Log())
		}
	})
	return p, func(args ...string) (string, bool) {
		out, err := p.Docker(limit(t), lab.Alice, args...)
		return strings.TrimSpace(out), err == nil
	}
}

// TestAnEngineThatMapsUsers does there what users do, and what nobody may.
func TestAnEngineThatMapsUsers(t *testing.T) {
	p, on := remapped(t)
	mine := p.Home(lab.Alice)
	take := handing(t, mine)
	if out, ok := on(append([]string{"run", "--rm", "-v", mine + ":/d", lab.Image}, take...)...); ok || !strings.Contains(out, "permission denied") {
		t.Errorf("a handed directory: %s", out)
	}
	put(t, filepath.Join(mine, "mine"), "mine", 0o600, lab.Alice.UID)
	put(t, filepath.Join(mine, "roots"), "hidden", 0o600, 0)
	put(t, filepath.Join(mine, "remaps"), "hidden", 0o600, lab.RemapRoot)
	out, ok := on("run", "--rm", "-v", mine+":/d", lab.Image, "sh", "-c",
		"id -u; cat /proc/self/uid_map; cat /d/mine; stat -c %u:%g /d/mine; cat /d/roots /d/remaps; echo made >/d/made; chown 5 /d/made; mknod /d/node b 7 0; true")
	if !ok {
		t.Fatal(out)
	}
	for _, want := range []string{"0\n", " 700000 ", "mine0:0", "/d/roots': Permission denied", "/d/remaps': Permission denied", "Value too large", "Operation not permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	whose := func(name string) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(mine, name), &st); err != nil || st.Uid != lab.Alice.UID || st.Gid != lab.Alice.UID {
			t.Errorf("%s is %d:%d's, %v", name, st.Uid, st.Gid, err)
		}
	}
	whose("made")
	for _, user := range []string{"1000:1000", fmt.Sprint(lab.Alice.UID), "0:1234"} {
		if out, ok := on("run", "--rm", "--user", user, "-v", mine+":/d", lab.Image, "sh", "-c", "cat /d/mine; echo >/d/by-user"); !ok || out != "mine" {
			t.Errorf("as %s: %s", user, out)
		}
		whose("by-user")
		_ = os.Remove(filepath.Join(mine, "by-user"))
	}
	// The Engine copies as the host's root, who is nobody there.
	if out, ok := on("run", "-d", "--init", "--name", "uu", "-v", mine+":/d", "-v", "/var/run/docker.sock:/docker.sock", lab.Image, "sleep", "1000"); !ok {
		t.Fatal(out)
	}
	put(t, filepath.Join(mine, "copied-from"), "x", 0o644, lab.Alice.UID)
	if out, ok := on("cp", filepath.Join(mine, "copied-from"), "uu:/d/copied"); ok || !strings.Contains(out, "value too large") {
		t.Error(out)
	}
	if out, ok := on("cp", filepath.Join(mine, "copied-from"), "uu:/tmp/copied"); !ok {
		t.Error(out)
	}
	if out, ok := on("exec", "uu", "cat", "/tmp/copied"); !ok || out != "x" {
		t.Error(out)
	}
	for _, args := range [][]string{{"--userns", "host"}, {"--privileged"}, {"--pid", "host"}} {
		if out, ok := on(append(append([]string{"run", "--rm"}, args...), lab.Image, "true")...); ok || !strings.Contains(out, "Permission denied") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if log := p.Log(); strings.Contains(log, "maps no users") {
		t.Error("it warns of what is not so")
	}
	onesOwnDocker(t, p, mine, on)
}

// onesOwnDocker asks from containers over the socket that is bound in the Engine's
// place.
func onesOwnDocker(t *testing.T, p *lab.Proxy, mine string, on func(args ...string) (string, bool)) {
	t.Helper()
	tool, err := os.ReadFile(probe)
	if err == nil {
		err = os.WriteFile(filepath.Join(mine, "probe"), tool, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.Docker(limit(t), lab.Bob, "create", "--name", "bobs", lab.Image); err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() { _, _ = p.Docker(context.Background(), lab.Bob, "rm", "-f", "bobs") })
	if out, ok := on("run", "--rm", "--name", "inside", "-v", "/var/run/docker.sock:/docker.sock", "-v", mine+":/d", lab.Image, "/d/probe", "/docker.sock", "GET", "/containers/json?all=1"); !ok || !strings.Contains(out, "/inside") || strings.Contains(out, "/bobs") {
		t.Errorf("root: %s", out)
	}
	if out, ok := on("run", "--rm", "--user", "1000:1000", "--name", "inside", "-v", "/var/run/docker.sock:/docker.sock", "-v", mine+":/d", lab.Image, "/d/probe", "/docker.sock", "GET", "/swarm/unlockkey"); !ok || !strings.Contains(out, "403") {
		t.Errorf("uid 1000 as an admin: %s", out)
	}
}

// TestRootStepsAreTold looks for the record of a build whose steps are the host's root.
func TestRootStepsAreTold(t *testing.T) {
	p, _ := withHomes(t, "")
	classic(t)
	untag(t, "rootsteps:1")
	if out, err := p.Docker(limit(t), lab.Alice, "build", "-q", "-t", "rootsteps:1", dockerfile(t, lab.Alice, "rootsteps", "FROM busybox:local\nRUN id\n")); err != nil {
		t.Fatal(out)
	}
	eventually(t, "the build is recorded as let through", func() bool {
		text, err := p.Audit()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if strings.Contains(line, "/build") && strings.Contains(line, `"verdict":"fail_open"`) && strings.Contains(line, "container-root") {
				return true
			}
		}
		return false
	})
}
