package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// honouring are kinds of file systems that users keep their files on.
var honouring = []string{"ext4", "tmpfs"}

// honours mounts a file system that honours set-user-id programs and devices on a
// directory, and gives it to alice.
func honours(t *testing.T, kind, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	image := ""
	switch kind {
	case "tmpfs":
		if err := unix.Mount("none", dir, kind, 0, "size=32m"); err != nil {
			t.Fatal(err)
		}
	case "ext4":
		image = filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop,suid,dev", image, dir}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if image != "" {
			eventually(t, "the disk is nobody's", func() bool {
				out, err := exec.Command("losetup", "-j", image).Output()
				return err == nil && len(out) == 0
			})
		}
	})
	if err := errors.Join(os.Chown(dir, int(lab.Alice.UID), int(lab.Alice.UID)), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
}

// onHost runs a program on the host as a process of alice's.
func onHost(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(limit(t), args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lab.Alice.UID, Gid: lab.Alice.UID}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A disk is a loop device of the test's own that only root may read.
func disk(t *testing.T) (number string) {
	t.Helper()
	marker := filepath.Join(t.TempDir(), "marker")
	if err := os.WriteFile(marker, append([]byte(secret), make([]byte, 65536-len(secret))...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--read-only", "--find", "--show", marker).Output()
	if err != nil {
		t.Fatalf("a disk of the test's own: %v", err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("the disk stays: %v: %s", err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(unix.Minor(st.Rdev))
}

// A way is one of the two to the Engine.
type way struct {
	name string
	run  func(args ...string) string
	open bool
}

// ways are the Engine's own socket, where holes are open, and alice's.
func ways(t *testing.T, p *lab.Proxy) []way {
	return []way{
		{"raw", func(args ...string) string {
			t.Helper()
			out, err := theEngine.Docker(limit(t), append([]string{"run", "--rm"}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}, true},
		{"proxy", func(args ...string) string {
			t.Helper()
			out, ok := runs(t, p, args...)
			if !ok {
				t.Fatal(out)
			}
			return out
		}, false},
	}
}

// TestPlantedFilesGiveNothing has a container's root put a set-user-id program and
// devices into a directory of alice's, and a process of hers on the host use them.
func TestPlantedFilesGiveNothing(t *testing.T) {
	p, _ := withHomes(t, "")
	minor := disk(t)
	for _, kind := range honouring {
		dir := filepath.Join(home(lab.Alice), kind)
		honours(t, kind, dir)
		id, err := exec.LookPath("id")
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(id)
		if err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, "id"), string(program), 0o755, lab.Alice.UID)
		for _, w := range ways(t, p) {
			t.Run(kind+" "+w.name, func(t *testing.T) {
				at := func(name string) string { return filepath.Join(dir, w.name+name) }
				out := w.run("-v", dir+":/d", "-e", "N="+w.name, "-e", "MINOR="+minor, lab.Image, "sh", "-c",
					`cp /d/id /d/$N-suid && chown 0:0 /d/$N-suid && chmod 6755 /d/$N-suid
					mknod /d/$N-disk b 7 $MINOR; mknod /d/$N-zero c 1 5; mknod -m 666 /tmp/zero c 1 5 && mv /tmp/zero /d/$N-moved; chmod 666 /d/$N-disk /d/$N-zero; true`)
				uid := fmt.Sprint(lab.Alice.UID)
				if w.open {
					uid = "0"
				}
				for flag, want := range map[string]string{"-u": uid, "-g": uid} {
					if got, err := onHost(t, at("-suid"), flag); err != nil || strings.TrimSpace(got) != want {
						t.Errorf("id %s, run on the host by alice: %q, %v, want %s; the container says %s", flag, got, err, want, out)
					}
				}
				for name, text := range map[string]string{"-disk": secret, "-zero": "\x00\x00\x00\x00"} {
					got, err := onHost(t, "head", "-c", fmt.Sprint(len(text)), at(name))
					if (err == nil && got == text) != w.open {
						t.Errorf("%s, read on the host by alice: %q, %v", name, got, err)
					}
				}
				if w.open {
					return
				}
				for _, name := range []string{"-disk", "-zero", "-moved"} {
					var st unix.Stat_t
					if err := unix.Lstat(at(name), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
						t.Errorf("%s is there with mode %o: %s", name, st.Mode, out)
					}
				}
			})
		}
	}
}

// TestWhatIsThereAlreadyGivesNothing leaves a set-user-id program of alice's and a
// device in her directory, and has another user of a container use them: the program
// asks a socket that is alice's alone.
func TestWhatIsThereAlreadyGivesNothing(t *testing.T) {
	p, _ := withHomes(t, "")
	program, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range honouring {
		dir := filepath.Join(home(lab.Alice), kind)
		honours(t, kind, dir)
		put(t, filepath.Join(dir, "suid"), string(program), 0o755, lab.Alice.UID)
		l, err := net.Listen("unix", filepath.Join(dir, "sock"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.NotFoundHandler()}
		go srv.Serve(l)
		if err := errors.Join(os.Chown(filepath.Join(dir, "sock"), int(lab.Alice.UID), int(lab.Alice.UID)), os.Chmod(filepath.Join(dir, "sock"), 0o600),
			os.Chmod(filepath.Join(dir, "suid"), 0o755|os.ModeSetuid),
			unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR, int(unix.Mkdev(1, 5))), os.Chmod(filepath.Join(dir, "zero"), 0o666)); err != nil {
			t.Fatal(err)
		}
		for _, w := range ways(t, p) {
			for user, asks := range map[string]bool{"1000:1000": w.open, "0": true} {
				out := w.run("--user", user, "--label", "ds01.bind.map=root", "-v", dir+":/d", lab.Image, "sh", "-c", `head -c 4 /d/zero >/dev/null && echo zero opens; /d/suid /d/sock GET /; true`)
				if strings.Contains(out, "zero opens") != w.open || strings.Contains(out, "404 Not Found") != asks {
					t.Errorf("%s %s as %s: %s", kind, w.name, user, out)
				}
			}
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFilesInBindsAreTheUsers makes, reads and gives away files in a directory of
// alice's as a container's root.
func TestFilesInBindsAreTheUsers(t *testing.T) {
	p, _ := withHomes(t, "")
	for _, kind := range honouring {
		dir := filepath.Join(home(lab.Alice), kind)
		honours(t, kind, dir)
		bobs := filepath.Join(dir, "bobs")
		if err := errors.Join(os.Mkdir(bobs, 0o700), os.Chown(bobs, int(lab.Bob.UID), int(lab.Bob.UID))); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(bobs, "secret"), secret, 0o600, lab.Bob.UID)
		for _, w := range ways(t, p) {
			t.Run(kind+" "+w.name, func(t *testing.T) {
				out := w.run("-v", dir+":/d", "-e", "N="+w.name, lab.Image, "sh", "-c",
					`mkdir /d/$N-dir; echo x >/d/$N-file; ln -s x /d/$N-link; mkfifo /d/$N-fifo
					chown 12345 /d/$N-file && echo given; chgrp 12345 /d/$N-dir && echo given; chown -h 12345:12345 /d/$N-link && echo given
					cat /d/bobs/secret; ls /d/bobs && echo listed; touch /d/bobs/$N-in && echo written; chmod 777 /d/bobs && echo opened
					mv /d/bobs /d/bobs-moved && mv /d/bobs-moved /d/bobs; true`)
				for _, name := range []string{"-file", "-dir", "-link"} {
					if strings.Contains(out, w.name+name+": Value too large for defined data type") == w.open || strings.Contains(out, "given") != w.open {
						t.Errorf("%s is given away: %s", name, out)
					}
				}
				for _, text := range []string{secret, "listed", "written", "opened"} {
					if strings.Contains(out, text) != w.open {
						t.Errorf("bob's directory, %q: %s", text, out)
					}
				}
				if err := os.Chmod(bobs, 0o700); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"-dir", "-file", "-link", "-fifo"} {
					var st unix.Stat_t
					if err := unix.Lstat(filepath.Join(dir, w.name+name), &st); err != nil || (st.Uid == lab.Alice.UID && st.Gid == lab.Alice.UID) == w.open {
						t.Errorf("%s is %d:%d's on disk, %v", name, st.Uid, st.Gid, err)
					}
				}
			})
		}
	}
}

// TestADatabaseInABind runs an image like a database's, which gives the directory of
// its data to a user of its own and runs as that.
func TestADatabaseInABind(t *testing.T) {
	p, _ := withHomes(t, "")
	untag(t, "database:1")
	admin(t, "create", "--name", "database", lab.Image)
	tidy(t, "database", "database-1", "database-2", "database-data")
	admin(t, "commit", "-c", "VOLUME /var/lib/db/data", "-c", "ENV PGDATA=/var/lib/db/data", "-c",
		`ENTRYPOINT ["sh","-c","mkdir -p $PGDATA && find $PGDATA ! -user 999 -exec chown 999 {} + && stat -c 'owned by %u' $PGDATA"]`, "database", "database:1")
	const named = "use a named volume then, -v NAME:/var/lib/db/data"
	for _, kind := range honouring {
		dir := filepath.Join(home(lab.Alice), kind)
		honours(t, kind, dir)
		for _, w := range ways(t, p)[:1] {
			if out := w.run("-v", dir+":/var/lib/db/data", "database:1"); !strings.Contains(out, "owned by 999") {
				t.Errorf("%s %s: %s", kind, w.name, out)
			}
		}
		if err := os.Chown(dir, int(lab.Alice.UID), int(lab.Alice.UID)); err != nil {
			t.Fatal(err)
		}
		for _, target := range []string{"/var/lib/db/data", "/var/lib/db/data/", "/var/lib/db/../db/data"} {
			out, ok := runs(t, p, "-v", dir+":"+target, "database:1")
			if ok || !strings.Contains(out, "WARNING") || !strings.Contains(out, "use a named volume then, -v NAME:") || !strings.Contains(out, "Value too large for defined data type") || strings.Contains(out, "owned by") {
				t.Errorf("%s at %s: %t: %s", kind, target, ok, out)
			}
		}
		got := ask(t, p.Socket(lab.Alice), "POST", "/containers/create?name=database-1", `{"Image":"database:1","HostConfig":{"Binds":["`+dir+`:/var/lib/db/data"]}}`)
		if got.status != http.StatusCreated || !strings.Contains(got.body, named) {
			t.Errorf("%s: the answer is %d %s", kind, got.status, got.body)
		}
		ask(t, p.Socket(lab.Alice), "DELETE", "/containers/database-1", "")
		got = ask(t, theEngine.Socket, "POST", "/containers/create?name=database-2", `{"Image":"database:1","HostConfig":{"Binds":["`+dir+`:/var/lib/db/data"]}}`)
		if got.status != http.StatusCreated || strings.Contains(got.body, named) {
			t.Errorf("%s: the Engine's own answer is %d %s", kind, got.status, got.body)
		}
		ask(t, theEngine.Socket, "DELETE", "/containers/database-2", "")
	}
	if out, ok := runs(t, p, "-v", "database-data:/var/lib/db/data", "database:1"); !ok || !strings.Contains(out, "owned by 999") || strings.Contains(out, "WARNING") {
		t.Errorf("with a volume: %s", out)
	}
}

// TestBindsOfOneContainerAreBounded asks for one more than the most.
func TestBindsOfOneContainerAreBounded(t *testing.T) {
	p, _ := withHomes(t, "")
	staged := func() int {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(p.Dir, "run", "binds"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	tidy(t, "bounded", "bounded-raw")
	body := func(n int) string {
		var list, mounts []string
		for i := range n {
			if i%2 == 0 {
				list = append(list, fmt.Sprintf(`"%s:/d%d"`, home(lab.Alice), i))
			} else {
				mounts = append(mounts, fmt.Sprintf(`{"Type":"bind","Source":%q,"Target":"/d%d"}`, home(lab.Alice), i))
			}
		}
		return `{"Image":"busybox:local","HostConfig":{"Binds":[` + strings.Join(list, ",") + `],"Mounts":[` + strings.Join(mounts, ",") + `]}}`
	}
	if got := ask(t, theEngine.Socket, "POST", "/containers/create?name=bounded-raw", body(65)); got.status != http.StatusCreated {
		t.Errorf("65 paths on the Engine itself: %d %s", got.status, got.body)
	}
	got := ask(t, p.Socket(lab.Alice), "POST", "/containers/create?name=bounded", body(65))
	if got.status != http.StatusBadRequest || !strings.Contains(got.body, "the request binds 65 paths of the host; 64 is the most") || staged() != 0 {
		t.Errorf("65 paths: %d %s, %d staged", got.status, got.body, staged())
	}
	if got := ask(t, p.Socket(lab.Alice), "POST", "/containers/create?name=bounded", body(64)); got.status != http.StatusCreated || staged() != 64 {
		t.Errorf("64 paths: %d %s, %d staged", got.status, got.body, staged())
	}
	// What is refused half way leaves nothing.
	if got := ask(t, p.Socket(lab.Alice), "POST", "/containers/create?name=bounded", body(10)); got.status != http.StatusConflict {
		t.Errorf("a name that is taken: %d %s", got.status, got.body)
	}
	eventually(t, "what was not used is gone", func() bool { return staged() == 64 })
	ask(t, p.Socket(lab.Alice), "DELETE", "/containers/bounded", "")
	eventually(t, "all is gone", func() bool { return staged() == 0 })
}
