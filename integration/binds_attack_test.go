package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestBindsOfFileSystemsThatCannotMap refuses what has no map; and binds without one
// only where a profile allows it, on what honours no set-user-id programs.
func TestBindsOfFileSystemsThatCannotMap(t *testing.T) {
	p, _ := withHomes(t, "    map: [auto, none]\n")
	mounted := func(fs string, flags uintptr) string {
		t.Helper()
		dir := filepath.Join(home(lab.Alice), fs)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", dir, fs, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if err := os.Chown(dir, int(lab.Alice.UID), int(lab.Alice.UID)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	ram, tmp := mounted("ramfs", 0), mounted("tmpfs", unix.MS_NOSUID|unix.MS_NODEV)
	own := fmt.Sprintf("%d:%d", lab.Alice.UID, lab.Alice.UID)
	for _, args := range [][]string{
		{}, {"--label", "ds01.bind.map=none"}, {"--user", fmt.Sprint(lab.Alice.UID)}, {"--user", own, "--group-add", "0"},
		{"--user", own, "-w", "/d/made/by/root"}, {"--user", own, "-v", tmp + ":/d/made/by/root"}, {"--user", own, "--tmpfs", "/d/made"},
	} {
		if out, ok := runs(t, p, append(args, "-v", ram+":/d", lab.Image, "true")...); ok || !strings.Contains(out, "rule bind-source") {
			t.Errorf("%v: %s", args, out)
		}
	}
	ofOneself(t, p, ram, own)
	if out, ok := runs(t, p, "-v", tmp+":/d", lab.Image, "stat", "-c", "%u", "/d"); !ok || out != "0" {
		t.Errorf("a tmpfs: %s", out)
	}
	if out, ok := runs(t, p, "--label", "ds01.bind.map=none", "-v", tmp+":/d", lab.Image, "stat", "-c", "%u", "/d"); !ok || out != fmt.Sprint(lab.Alice.UID) {
		t.Errorf("without a map: %s", out)
	}
	if out, ok := runs(t, p, "--label", "ds01.bind.map=none", "-v", home(lab.Alice)+":/d", lab.Image, "true"); ok || !strings.Contains(out, "honours set-user-id programs or devices") {
		t.Errorf("without a map where the host honours set-user-id programs: %s", out)
	}
}

// ofOneself binds a file system without a map into containers that are their user.
func ofOneself(t *testing.T, p *lab.Proxy, ram, own string) {
	t.Helper()
	put(t, filepath.Join(ram, "roots"), "hidden", 0o600, 0)
	out, ok := runs(t, p, "--user", own, "-v", ram+":/d", "-w", "/d", lab.Image, "sh", "-c", "echo x >mine; cat roots; grep -E 'CapBnd|NoNew' /proc/self/status")
	if !ok || !strings.Contains(out, "Permission denied") || !strings.Contains(out, "0000000000000000") || !strings.Contains(out, "NoNewPrivs:\t1") {
		t.Errorf("as herself: %s", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(ram, "mine"), &st); err != nil || st.Uid != lab.Alice.UID {
		t.Errorf("what she made is %d's, %v", st.Uid, err)
	}
	on := func(args ...string) string {
		out, _ := p.Docker(limit(t), lab.Alice, args...)
		return out
	}
	tidy(t, "unmapped", "unmapped-heir")
	on("run", "-d", "--init", "--name", "unmapped", "--user", own, "-v", ram+":/d", lab.Image, "sleep", "1000")
	file := filepath.Join(home(lab.Alice), "file")
	put(t, file, "x", 0o644, lab.Alice.UID)
	for _, c := range []struct{ args, want string }{
		{"exec unmapped cat /d/mine", "x"},
		{"exec --user " + own + " unmapped cat /d/mine", "x"},
		{"exec --user 0 unmapped cat /d/roots", "rule exec-user"},
		{"exec --user root:root unmapped cat /d/roots", "rule exec-user"},
		{"cp unmapped:/d/roots -", "rule copy-unmapped"},
		{"cp " + file + " unmapped:/d/x", "rule copy-unmapped"},
		{"run --rm --volumes-from unmapped busybox:local cat /d/roots", "rule bind-source"},
		{"run --name unmapped-heir --user " + own + " --volumes-from unmapped busybox:local cat /d/mine", "x"},
		{"inspect --format {{.HostConfig.Binds}}{{.HostConfig.CapDrop}} unmapped-heir", "[ALL]"},
		{"inspect --format {{.HostConfig.Binds}} unmapped", ram + ":/d"},
	} {
		if out := on(strings.Fields(c.args)...); !strings.Contains(out, c.want) {
			t.Errorf("docker %s: %s", c.args, out)
		}
	}
	// It is there again after an end of the daemon that nobody prepared for.
	on("stop", "-t", "0", "unmapped")
	if err := errors.Join(p.Kill(), p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob})); err != nil {
		t.Fatal(err)
	}
	if out := on("start", "unmapped") + on("exec", "unmapped", "cat", "/d/mine"); !strings.Contains(out, "x") {
		t.Error(out)
	}
	on("rm", "-f", "unmapped", "unmapped-heir")
}

// TestBindsInTheStrictProfile wants no root beside what is the host's.
func TestBindsInTheStrictProfile(t *testing.T) {
	p, _ := withHomes(t, "    binds_as_root: false\n")
	classic(t)
	mine := home(lab.Alice)
	// An image may call root what it likes.
	as(t, lab.Alice, "build", "-q", "-t", "otherroot:1", dockerfile(t, lab.Alice, "otherroot", "FROM busybox:local\nRUN echo evil:x:0:0::/:/bin/sh >/etc/passwd\nUSER evil\n"))
	untag(t, "otherroot:1")
	for _, args := range [][]string{{}, {"--user", "evil"}, {"--user", "evil:5", "--label", "ds01.bind.map=user"}} {
		if out, ok := runs(t, p, append(args, "-v", mine+":/d", "otherroot:1", "true")...); ok || !strings.Contains(out, "rule bind-root") {
			t.Errorf("%v: %s", args, out)
		}
	}
	for _, args := range [][]string{{}, {"--user", "0"}, {"--user", "root"}, {"--user", "0:5"}, {"--user", "00"}} {
		if out, ok := runs(t, p, append(args, "-v", mine+":/d", lab.Image, "true")...); ok || !strings.Contains(out, "rule bind-root") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if out, ok := runs(t, p, "--user", fmt.Sprint(lab.Alice.UID), "-v", mine+":/d", lab.Image, "touch", "/d/x"); !ok {
		t.Error(out)
	}
	tidy(t, "strict-exec")
	if out, err := p.Docker(limit(t), lab.Alice, "run", "-d", "--init", "--name", "strict-exec", "--user", "5:5", "-v", mine+":/d", lab.Image, "sleep", "1000"); err != nil {
		t.Fatal(out)
	}
	for user, want := range map[string]string{"0": "rule exec-user", "0:5": "rule exec-user", "root": "rule exec-user", "6": "uid=6"} {
		if out, _ := p.Docker(limit(t), lab.Alice, "exec", "--user", user, "strict-exec", "id"); !strings.Contains(out, want) {
			t.Errorf("exec as %s: %s", user, out)
		}
	}
}

// TestAnImageThatGivesItsFilesAway binds over a volume that the image declares and
// whose files it gives to a user of its own: the maker is told what to do.
func TestAnImageThatGivesItsFilesAway(t *testing.T) {
	p, _ := withHomes(t, "")
	untag(t, "givesaway:1")
	admin(t, "create", "--name", "givesaway", lab.Image)
	tidy(t, "givesaway")
	admin(t, "commit", "-c", "VOLUME /data", "-c", `CMD ["chown", "70", "/data"]`, "givesaway", "givesaway:1")
	out, ok := runs(t, p, "-v", home(lab.Alice)+":/data", "givesaway:1")
	if ok || !strings.Contains(out, "WARNING") || !strings.Contains(out, "use a named volume then, -v NAME:/data.") || !strings.Contains(out, "Value too large") {
		t.Errorf("it says: %s", out)
	}
	tidy(t, "givesaway-volume")
	if out, ok := runs(t, p, "-v", "givesaway-volume:/data", "givesaway:1"); !ok || out != "" {
		t.Errorf("with a volume: %s", out)
	}
}

// TestSwappedLinkRace swaps a directory of alice's with a link to what she may not
// have, while containers that bind it are made, started and started again.
func TestSwappedLinkRace(t *testing.T) {
	p, _ := withHomes(t, "    restart: [always]\n")
	dir, secret := filepath.Join(home(lab.Alice), "dir"), filepath.Join(os.Getenv("HOMES"), "roots")
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777), os.Mkdir(secret, 0o700), os.WriteFile(filepath.Join(secret, "marker"), []byte("SECRET"), 0o600), os.Symlink(secret, dir+"-link")); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	swaps := 0
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, dir+"-link", unix.RENAME_EXCHANGE) == nil {
					swaps++
				}
			}
		}
	}()
	sock := p.Socket(lab.Alice)
	made, refused := 0, 0
	for began := time.Now(); time.Since(began) < raceTime; {
		got := ask(t, sock, "POST", "/containers/create", `{"Image":"busybox:local","Cmd":["sh","-c","cat /d/marker; echo mine >/d/marker-$(hostname)"],"HostConfig":{"NetworkMode":"none","Binds":["`+dir+`:/d"]}}`)
		if got.status != http.StatusCreated {
			refused++
			continue
		}
		made++
		id := idIn(got)
		for _, verb := range []string{"start", "wait", "restart?t=0", "wait"} {
			ask(t, sock, "POST", "/containers/"+id+"/"+verb, "")
		}
		if log := ask(t, sock, "GET", "/containers/"+id+"/logs?stdout=1&stderr=1", "").body; strings.Contains(log, "SECRET") {
			t.Fatalf("after %d containers one read the secret", made)
		}
		ask(t, sock, "DELETE", "/containers/"+id+"?force=1", "")
	}
	close(stop)
	<-done
	if made == 0 || refused == 0 || swaps < 1000 {
		t.Errorf("the race was not run: %d made, %d refused, %d swaps", made, refused, swaps)
	}
	if left, err := os.ReadDir(secret); err != nil || len(left) != 1 {
		t.Errorf("what alice may not have got %v, %v", left, err)
	}
}

// TestHardeningIsInherited takes a writable bind from another container, and copies
// device nodes into one's own.
func TestHardeningIsInherited(t *testing.T) {
	p, _ := withHomes(t, "")
	mine := home(lab.Alice)
	if out, err := p.Docker(limit(t), lab.Alice, "create", "--name", "harden", "--label", "x=y", "-v", mine+":/h", lab.Image); err != nil {
		t.Fatal(out)
	}
	tidy(t, "harden")
	for _, args := range [][]string{{"--volumes-from", "harden"}, {"--volumes-from", "harden", "--cap-add", "CHOWN"}, {}} {
		if out, ok := runs(t, p, append(args, lab.Image, "mknod", "/tmp/disk", "b", "7", "0")...); ok || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%v: %s", args, out)
		}
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []*tar.Header{{Name: "fine", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 7}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for what, body := range map[string]string{"plain": archive.String(), "packed": packed.String()} {
		for _, at := range []string{"/h", "/tmp"} {
			got := ask(t, p.Socket(lab.Alice), "PUT", "/containers/harden/archive?path="+at, body, "Content-Type", "application/x-tar")
			if got.status != http.StatusForbidden || !strings.Contains(got.body, "rule device-nodes") {
				t.Errorf("%s into %s: %d %s", what, at, got.status, got.body)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(mine, "disk")); err == nil {
		t.Error("the node is in alice's home")
	}
	// What is mounted read-only keeps nosuid and nodev.
	if out, ok := runs(t, p, "-v", mine+":/h:ro", lab.Image, "sh", "-c", "grep ' /h ' /proc/mounts; touch /h/x"); ok || !strings.Contains(out, "nosuid") || !strings.Contains(out, "nodev") || !strings.Contains(out, "Read-only") {
		t.Errorf("read-only: %s", out)
	}
}

// TestAbandonedCreates hangs up while the Engine makes containers: their binds stay
// theirs.
func TestAbandonedCreates(t *testing.T) {
	p, _ := withHomes(t, "")
	mine := home(lab.Alice)
	body := `{"Image":"busybox:local","Cmd":["sh","-c","grep ' /h ' /proc/mounts"],"HostConfig":{"NetworkMode":"none","Binds":["` + mine + `:/h"]}}`
	for i := range 12 {
		name := fmt.Sprintf("abandoned-%d", i)
		tidy(t, name)
		c, err := net.Dial("unix", p.Socket(lab.Alice))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "POST /containers/create?name=%s HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", name, len(body), body); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5*i) * time.Millisecond)
		c.Close()
	}
	time.Sleep(2 * time.Second)
	for i := range 12 {
		name := fmt.Sprintf("abandoned-%d", i)
		if _, err := theEngine.Docker(limit(t), "inspect", name); err != nil {
			continue
		}
		out, err := p.Docker(limit(t), lab.Alice, "start", "-a", name)
		if err != nil || !strings.Contains(out, "nosuid") || !strings.Contains(out, "idmapped") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
