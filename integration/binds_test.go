package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// withHomes starts a proxy whose users may bind their homes, read-only what is in
// "shared", and nothing else; more is added to the profile.
func withHomes(t *testing.T, more string) (p *lab.Proxy, shared string) {
	t.Helper()
	shared, err := os.MkdirTemp("", "shared")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shared) })
	if err := os.Chmod(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "c.yaml")
	// Where the homes are is known when the proxy has started; a directory of the test's
	// own holds them.
	homes, err := os.MkdirTemp("", "homes")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(homes) })
	if err := os.Chmod(homes, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		home := filepath.Join(homes, who.Name)
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(home, int(who.UID), int(who.UID)); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("profile: homes\nprofiles:\n  homes:\n    from: confined\n    binds: [{path: %s}, {path: %s, read_only: true}]\n%s", homes, shared, more)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p = ownProxy(t, theEngine.Socket, "--config", conf)
	t.Setenv("HOMES", homes)
	return p, shared
}

// home is a person's directory below the homes of withHomes.
func home(who lab.Person) string { return filepath.Join(os.Getenv("HOMES"), who.Name) }

// put writes a file as root and gives it to somebody.
func put(t *testing.T, path, text string, mode os.FileMode, uid uint32) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, int(uid), int(uid)); err != nil {
		t.Fatal(err)
	}
}

// runs runs a container of alice's and returns what it printed and whether it
// succeeded.
func runs(t *testing.T, p *lab.Proxy, args ...string) (string, bool) {
	t.Helper()
	out, err := p.Docker(limit(t), lab.Alice, append([]string{"run", "--rm"}, args...)...)
	return strings.TrimSpace(out), err == nil
}

// TestBindsOfOnesOwn binds what one may, and looks whose everything is.
func TestBindsOfOnesOwn(t *testing.T) {
	p, shared := withHomes(t, "")
	mine := home(lab.Alice)
	put(t, filepath.Join(mine, "mine"), "mine", 0o600, lab.Alice.UID)
	put(t, filepath.Join(mine, "roots"), "hidden", 0o600, 0)
	put(t, filepath.Join(shared, "data"), "shared", 0o644, 0)
	out, ok := runs(t, p, "-v", mine+":/d", "-v", shared+":/s:ro", lab.Image, "sh", "-c",
		"id -u; stat -c %u:%g /d/mine; cat /d/mine /s/data; echo made >/d/made; chmod 4755 /d/made; cat /d/roots; chown 5 /d/made; mknod /d/node b 7 0; echo x >/s/x; true")
	if !ok {
		t.Fatal(out)
	}
	for _, want := range []string{"0\n0:0\n", "mineshared", "/d/roots': Permission denied", "Value too large", "mknod: /d/node: Operation not permitted", "Read-only file system"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mine, "made"), &st); err != nil || st.Uid != lab.Alice.UID || st.Gid != lab.Alice.UID {
		t.Errorf("what root in the container made is %d:%d's, %v", st.Uid, st.Gid, err)
	}
	// As a user of the container's, by number, by name, and as oneself.
	for _, c := range []struct{ user, want string }{{"1000:1000", "1000:1000"}, {"0:1234", "0:1234"}, {fmt.Sprint(lab.Alice.UID), fmt.Sprint(lab.Alice.UID, ":0")}} {
		out, ok := runs(t, p, "--user", c.user, "-v", mine+":/d", lab.Image, "sh", "-c", "stat -c %u:%g /d/mine; cat /d/mine; echo >/d/by-user")
		if !ok || !strings.HasPrefix(out, c.want+"\nmine") {
			t.Errorf("as %s: %s", c.user, out)
		}
	}
	for name, want := range map[string]string{"user": fmt.Sprint(lab.Alice.UID), "root": "0"} {
		if out, ok := runs(t, p, "--label", "ds01.bind.map="+name, "-v", mine+":/d", lab.Image, "stat", "-c", "%u", "/d/mine"); !ok || out != want {
			t.Errorf("with the map %s: %s", name, out)
		}
	}
	// A dev container runs as root, and its tools work in it as somebody else.
	for remote, want := range map[string]string{"1000": "1000", "0": "0", "${localEnv:USER}": fmt.Sprint(lab.Alice.UID)} {
		meta := fmt.Sprintf(`devcontainer.metadata=[{"remoteUser":"other"},{"remoteUser":%q}]`, remote)
		if out, ok := runs(t, p, "--label", meta, "-v", mine+":/d", lab.Image, "stat", "-c", "%u", "/d/mine"); !ok || out != want {
			t.Errorf("with the remote user %s: %s", remote, out)
		}
	}
	// A missing directory is made as the user; a file is bound alone.
	if out, ok := runs(t, p, "-v", mine+"/new/dir:/d", lab.Image, "touch", "/d/x"); !ok {
		t.Error(out)
	}
	if err := unix.Stat(filepath.Join(mine, "new", "dir"), &st); err != nil || st.Uid != lab.Alice.UID {
		t.Errorf("the new directory is %d's, %v", st.Uid, err)
	}
	if out, ok := runs(t, p, "--mount", "type=bind,source="+mine+"/mine,target=/f,readonly", lab.Image, "cat", "/f"); !ok || out != "mine" {
		t.Errorf("a file: %s", out)
	}
}

// TestBindsThatAreRefused asks for everything that is not one's own.
func TestBindsThatAreRefused(t *testing.T) {
	p, shared := withHomes(t, "")
	mine, bobs := home(lab.Alice), home(lab.Bob)
	put(t, filepath.Join(bobs, "secret"), "secret", 0o600, lab.Bob.UID)
	for name, to := range map[string]string{"etc": "/etc", "bob": bobs, "root": "/", "magic": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(mine, name)); err != nil {
			t.Fatal(err)
		}
	}
	for source, text := range map[string]string{
		"/": "not below a directory that may be bound", "/etc": "not below", "/etc/shadow": "not below", "/proc": "not below", "/sys": "not below", "/dev": "not below", "/run": "not below",
		"/root": "not below", bobs: "you may not write", bobs + "/secret": "you may not", mine + "/etc": "not below", mine + "/bob": "you may not write", mine + "/root": "not below", mine + "/magic": "symbolic links",
		mine + "/../bob": "you may not", shared: "with :ro only", theEngine.Dir: "", theProxy.Socket(lab.Bob): "", "/nosuch/dir": "no such path", theEngine.Dir + "/data": "",
	} {
		for _, args := range [][]string{{"-v", source + ":/d"}, {"--mount", "type=bind,source=" + source + ",target=/d"}} {
			out, ok := runs(t, p, append(args, lab.Image, "true")...)
			if ok || !strings.Contains(out, "rule bind-source") || !strings.Contains(out, text) {
				t.Errorf("%v: %t: %s, want %q", args, ok, out, text)
			}
		}
	}
	for _, body := range []string{
		`{"Image":"busybox:local","HostConfig":{"binds":["/etc:/d"]}}`, `{"Image":"busybox:local","Binds":["/etc:/d"]}`,
		`{"Image":"busybox:local","HostConfig":{"Binds":["x:/x"],"BINDS":["/etc:/d"]}}`, `{"Image":"busybox:local","HostConfig":{"Mounts":[{"type":"bind","source":"/etc","target":"/d"}]}}`,
		`{"Image":"busybox:local","HostConfig":{"Binds":["//etc:/d"]}}`, `{"Image":"busybox:local","HostConfig":{"Binds":["/etc/../etc/:/d"]}}`,
	} {
		got := ask(t, p.Socket(lab.Alice), "POST", "/containers/create?name=bind-refused", body)
		if got.status == http.StatusCreated {
			if mounts := admin(t, "inspect", "bind-refused", "--format", "{{json .Mounts}}"); strings.Contains(mounts, `"/etc`) {
				t.Errorf("%s became %s", body, mounts)
			}
			ask(t, p.Socket(lab.Alice), "DELETE", "/containers/bind-refused", "")
		} else if got.status != http.StatusForbidden || !strings.Contains(got.body, "bind-source") {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	refusedBy := func(text string, args ...string) {
		t.Helper()
		if out, ok := runs(t, p, args...); ok || !strings.Contains(out, text) {
			t.Errorf("%v: %s", args, out)
		}
	}
	refusedBy("bind-map", "--label", "ds01.bind.map=none", "-v", mine+":/d", lab.Image, "true")
}

// TestBindsGoAndStay follows staged mounts over the life of containers, restarts of
// the proxy and its sudden end.
func TestBindsGoAndStay(t *testing.T) {
	p, _ := withHomes(t, "")
	mine := home(lab.Alice)
	put(t, filepath.Join(mine, "mine"), "mine", 0o600, lab.Alice.UID)
	staged := func() int {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(p.Dir, "run", "binds"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := p.Docker(limit(t), lab.Alice, args...)
		if err != nil {
			t.Fatalf("docker %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(out)
	}
	id := must("run", "-d", "--init", "--name", "bound", "-v", mine+":/d", lab.Image, "sleep", "1000")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "bound", "bound-too", id) })
	// Users see their own paths, wherever a path is shown.
	for _, out := range []string{must("inspect", "bound"), must("ps", "--no-trunc", "--format", "{{.Mounts}}"), ask(t, p.Socket(lab.Alice), "GET", "/containers/json", "").body, ask(t, p.Socket(lab.Alice), "GET", "/system/df", "").body} {
		if strings.Contains(out, "run/binds") || !strings.Contains(out, mine) {
			t.Errorf("a user is shown: %.3000s", out)
		}
	}
	if out := admin(t, "inspect", "bound", "--format", "{{json .Mounts}}"); !strings.Contains(out, "run/binds") || strings.Contains(out, mine) {
		t.Errorf("the Engine has %s", out)
	}
	must("run", "-d", "--init", "--name", "bound-too", "--volumes-from", "bound", lab.Image, "sleep", "1000")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob}); err != nil {
		t.Fatal(err)
	}
	must("exec", "bound", "cat", "/d/mine")
	must("restart", "-t", "0", "bound")
	must("exec", "bound", "cat", "/d/mine")
	must("rm", "-f", "bound")
	must("restart", "-t", "0", "bound-too")
	must("exec", "bound-too", "cat", "/d/mine")
	if n := staged(); n != 1 {
		t.Errorf("%d are staged for the container that is left", n)
	}
	must("rm", "-f", "bound-too")
	eventually(t, "the stage is empty", func() bool { return staged() == 0 })
	must("run", "--rm", "-v", mine+":/d", lab.Image, "cat", "/d/mine")
	if _, err := p.Docker(limit(t), lab.Alice, "create", "--name", "bound", "-v", mine+":/d", "-v", "/etc:/e", lab.Image); err == nil {
		t.Error("one of two was refused, and the container was made")
	}
	must("create", "--name", "bound", "-v", mine+":/d", lab.Image)
	must("container", "prune", "-f")
	eventually(t, "the stage is empty again", func() bool { return staged() == 0 })
}

// TestMyDockerIsMyOwn binds the socket's usual path, and tries to give it away from
// inside.
func TestMyDockerIsMyOwn(t *testing.T) {
	p, _ := withHomes(t, "")
	for _, path := range []string{"/var/run/docker.sock", "/run/docker.sock", theEngine.Socket, p.Socket(lab.Alice), p.Shared()} {
		out, ok := runs(t, p, "-v", path+":/var/run/docker.sock", lab.Image, "sh", "-c", `stat -c '%u %F' /var/run/docker.sock; chown 64002 /var/run/docker.sock`)
		if ok || !strings.Contains(out, "0 socket") || !strings.Contains(out, "Value too large") {
			t.Errorf("%s: %s", path, out)
		}
	}
	// Clients inside are answered as alice, whoever they are there, and after a restart of
	// the daemon too, once their container starts anew.
	if out, err := p.Docker(limit(t), lab.Bob, "create", "--name", "bobs-own", lab.Image); err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "bobs-own", "asks") })
	client, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(home(lab.Alice), "probe")
	put(t, inside, string(client), 0o755, lab.Alice.UID)
	for _, args := range [][]string{{}, {"--user", "1000:1000"}, {"--label", `devcontainer.metadata={"remoteUser":"1000"}`}} {
		args = append([]string{"-v", "/var/run/docker.sock:/s", "-v", inside + ":/probe:ro", "--name", "asks"}, args...)
		if out, ok := runs(t, p, append(args, lab.Image, "/probe", "/s", "GET", "/containers/json?all=1")...); !ok || !strings.Contains(out, "/asks") || strings.Contains(out, "bobs-own") {
			t.Errorf("%q: %s", args, out)
		}
	}
	if out, err := p.Docker(limit(t), lab.Alice, "create", "--name", "asks", "-v", "/var/run/docker.sock:/s", "-v", inside+":/probe:ro", lab.Image, "/probe", "/s", "GET", "/_ping"); err != nil {
		t.Fatal(out)
	}
	if err := errors.Join(p.Stop(), p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob})); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Docker(limit(t), lab.Alice, "start", "-a", "asks"); err != nil || !strings.Contains(out, "200 OK") {
		t.Errorf("after a restart: %s", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(p.Socket(lab.Alice), &st); err != nil || st.Uid != lab.Alice.UID || st.Mode&0o777 != 0o600 {
		t.Errorf("alice's socket is %d's with mode %o, %v", st.Uid, st.Mode, err)
	}
}
