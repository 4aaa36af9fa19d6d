package peercred

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	idA = "aaaa000000000000000000000000000000000000000000000000000000000001"
	idB = "bbbb000000000000000000000000000000000000000000000000000000000002"
)

func TestContainerIDs(t *testing.T) {
	for _, r := range []struct {
		name, text string
		want       []string
	}{
		{"v2 cgroupfs", "0::/docker/" + idA + "\n", []string{idA}},
		{"v2 systemd", "0::/system.slice/docker-" + idA + ".scope\n", []string{idA}},
		{"v2 systemd, a user's slice", "0::/ds01.slice/ds01-student.slice/ds01-student-alice.slice/docker-" + idA + ".scope\n", []string{idA}},
		{"v2 cgroupfs, a user's slice", "0::/ds01.slice/ds01-student.slice/ds01-student-alice.slice/" + idA + "\n", []string{idA}},
		{"podman", "0::/machine.slice/libpod-" + idA + ".scope/container\n", []string{idA}},
		{"a process further down", "0::/system.slice/docker-" + idA + ".scope/init.scope\n", []string{idA}},
		{"Docker in Docker, outer first", "0::/system.slice/docker-" + idA + ".scope/docker/" + idB + "\n", []string{idA, idB}},
		{"v1", "12:cpu,cpuacct:/docker/" + idA + "\n1:name=systemd:/docker/" + idA + "\n0::/\n", []string{idA, idA}},
		{"v1 systemd", "3:memory:/system.slice/docker-" + idA + ".scope\n", []string{idA}},
		{"no newline at the end", "0::/docker/" + idA, []string{idA}},
		{"a colon in the path", "0::/a:b/" + idA + "\n", []string{idA}},
		{"host", "0::/user.slice/user-1001.slice/session-3.scope\n", nil},
		{"host root", "0::/\n", nil},
		{"empty", "", nil},
		{"no fields", idA + "\n", nil},
		{"two fields", "0:/docker/" + idA + "\n", nil},
		{"controllers are no path", "0:" + idA + ":/\n", nil},
		{"63 digits", "0::/docker/" + idA[1:] + "\n", nil},
		{"65 digits", "0::/docker/0" + idA + "\n", nil},
		{"upper case", "0::/docker/" + strings.ToUpper(idA) + "\n", nil},
		{"not hexadecimal", "0::/docker/" + idA[:63] + "g\n", nil},
		{"something after it", "0::/docker-" + idA + ".slice\n", nil},
		{"something before it", "0::/docker_" + idA + ".scope\n", nil},
		{"garbage", "\x00\xff:::\n::\n///\n\n", nil},
	} {
		if got := containerIDs(r.text); !slices.Equal(got, r.want) {
			t.Errorf("%s: got %q, want %q", r.name, got, r.want)
		}
	}
}

// The variables that make this test binary act as a client: what it does, and
// on which socket.
const (
	actEnv    = "DS01_PEER_ACT"
	socketEnv = "DS01_PEER_SOCKET"
	// peerUID is not root's and nobody's.
	peerUID = 64123
)

// The main goroutine must be on the process's first thread where that is to end.
func init() {
	if os.Getenv(actEnv) == "end-first-thread" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if act := os.Getenv(actEnv); act != "" {
		if err := client(act); err != nil {
			fmt.Fprintln(os.Stderr, act+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// client is what a process under test does. It prints a line when it is where
// the test wants it and then stays until its standard input ends.
func client(act string) error {
	dial := func() error {
		_, err := net.Dial("unix", os.Getenv(socketEnv))
		return err
	}
	drop := func() error { return errors.Join(syscall.Setgid(peerUID+1), syscall.Setuid(peerUID)) }
	var err error
	switch act {
	case "connect":
		err = dial()
	case "connect-as-user":
		err = errors.Join(drop(), dial())
	case "connect-then-drop":
		err = errors.Join(dial(), drop())
	case "connect-and-exit":
		return dial()
	case "print-own":
		r, err := NewReader()
		if err != nil {
			return err
		}
		for id := range r.Own {
			fmt.Println(id)
		}
		return nil
	case "end-first-thread":
		if err := dial(); err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		fmt.Println("connected")
		// Ends this thread alone; exit_group(2) is what ends a process.
		_, _, errno := syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
		return errno
	default:
		return errors.New("unknown act")
	}
	if err != nil {
		return err
	}
	fmt.Println("connected")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A peer is a client process and the server's end of its connection.
type peer struct {
	conn *net.UnixConn
	pid  int
	// end makes the process end and waits for it.
	end func()
}

// connect starts a client in the cgroup directory, or in this process's own
// where that is "".
func connect(t *testing.T, act, cgroup string) peer {
	t.Helper()
	dir := t.TempDir()
	// The scratch directory is root's alone and clients drop root.
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(l.Addr().String(), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := clientCommand(t, act, cgroup, l.Addr().String())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("client %s: %v", act, err)
			}
		}
	}
	t.Cleanup(end)
	if act != "connect-and-exit" {
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatalf("client %s said %q: %v", act, line, err)
		}
	}
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return peer{conn, cmd.Process.Pid, end}
}

func clientCommand(t *testing.T, act, cgroup, socket string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	// The race detector would otherwise wait a second before each client ends.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", actEnv+"="+act, socketEnv+"="+socket)
	cmd.Stderr = os.Stderr
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	return cmd
}

// waitForState waits until the process is in one of proc_pid_stat(5)'s states.
func waitForState(t *testing.T, pid int, state byte) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		at := strings.LastIndexByte(string(stat), ')') + 2
		if stat[at] == state {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pid %d is in state %c, not %c", pid, stat[at], state)
		}
	}
}

func TestReadIdentifies(t *testing.T) {
	for _, r := range []struct {
		act      string
		uid, gid uint32
	}{
		{"connect", 0, 0},
		{"connect-as-user", peerUID, peerUID + 1},
		// Whoever connected is who counts, not who writes later.
		{"connect-then-drop", 0, 0},
	} {
		t.Run(r.act, func(t *testing.T) {
			p := connect(t, r.act, "")
			got, err := new(Reader).Read(p.conn, Now())
			if err != nil {
				t.Fatal(err)
			}
			got.ContainerID, got.cgroups = "", ""
			if want := (Peer{PID: int32(p.pid), UID: r.uid, GID: r.gid}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestReadRefusesThePeerThatEnded(t *testing.T) {
	t.Run("reaped", func(t *testing.T) {
		p := connect(t, "connect-and-exit", "")
		p.end()
		wantGone(t, p)
	})
	t.Run("zombie", func(t *testing.T) {
		p := connect(t, "connect-and-exit", "")
		waitForState(t, p.pid, 'Z')
		wantGone(t, p)
	})
	t.Run("after it was there", func(t *testing.T) {
		p := connect(t, "connect", "")
		if _, err := new(Reader).Read(p.conn, Now()); err != nil {
			t.Fatal(err)
		}
		p.end()
		wantGone(t, p)
	})
}

// On cgroup v1 the kernel shows a thread that has exited in the root cgroup, and
// /proc/PID is the first thread: a container's root could let that thread end
// and pass for the host's.
func TestReadRefusesThePeerWhoseFirstThreadEnded(t *testing.T) {
	p := connect(t, "end-first-thread", "")
	waitForState(t, p.pid, 'Z')
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(p.pid) + "/task")
	if err != nil || len(tasks) < 2 {
		t.Fatalf("no other thread lives: %d tasks, %v", len(tasks), err)
	}
	wantGone(t, p)
}

func wantGone(t *testing.T, p peer) {
	t.Helper()
	if got, err := new(Reader).Read(p.conn, Now()); !errors.Is(err, ErrGone) || got != (Peer{}) {
		t.Errorf("got %+v, %v; want nobody and %v", got, err, ErrGone)
	}
}

// A pid that another process has by now: the pidfd tells.
func TestStillThere(t *testing.T) {
	p := connect(t, "connect", "")
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := stillThere(pidfd, int32(p.pid), Now()); err != nil {
		t.Errorf("alive: %v", err)
	}
	p.end()
	if err := stillThere(pidfd, int32(os.Getpid()), Now()); !errors.Is(err, ErrGone) {
		t.Errorf("ended, and the pid is another's: %v, want %v", err, ErrGone)
	}
	if err := stillThere(pidfd, int32(p.pid), Now()); !errors.Is(err, ErrGone) {
		t.Errorf("ended: %v, want %v", err, ErrGone)
	}
}

// A peer of another pid namespace has pid 0 here, which /proc/0 does not describe.
func TestOpenPeerRefusesAnInvisibleProcess(t *testing.T) {
	p := connect(t, "connect", "")
	raw, err := p.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{0, -1} {
		var pidfd int
		var inner error
		if err := raw.Control(func(fd uintptr) { pidfd, inner = openPeer(int(fd), pid) }); err != nil {
			t.Fatal(err)
		}
		if pidfd != -1 || inner == nil || errors.Is(inner, ErrGone) {
			t.Errorf("pid %d: got %d, %v; want an error that is not %v", pid, pidfd, inner, ErrGone)
		}
	}
}

func TestReadRefusesWhatIsClosed(t *testing.T) {
	p := connect(t, "connect", "")
	p.conn.Close()
	if got, err := new(Reader).Read(p.conn, Now()); err == nil || got != (Peer{}) {
		t.Errorf("got %+v, %v; want an error", got, err)
	}
}

// cgroups mounts cgroup v2, which hybrid hosts do not have at the usual place,
// and makes the directories, outer ones first, in it.
func cgroups(t *testing.T, dirs ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range dirs {
		path := filepath.Join(root, dir)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// A process that was waited for may still leave its cgroup busy for a moment.
			err := unix.Rmdir(path)
			for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = unix.Rmdir(path) {
				time.Sleep(time.Millisecond)
			}
			if err != nil {
				t.Errorf("remove cgroup %s: %v", path, err)
			}
		})
	}
	return root
}

// containerID makes an ID that no container and no other test has.
func containerID(t *testing.T, what string) string {
	sum := sha256.Sum256([]byte(t.TempDir() + what + strconv.Itoa(os.Getpid())))
	return hex.EncodeToString(sum[:])
}

func TestReadNamesTheContainer(t *testing.T) {
	id, own := containerID(t, "peer"), containerID(t, "own")
	root := cgroups(t, id, "docker-"+own+".scope", "docker-"+own+".scope/"+id, "ds01-"+id[:12])
	for _, r := range []struct {
		name, dir string
		own       []string
		want      string
	}{
		{"cgroupfs", id, nil, id},
		{"systemd", "docker-" + own + ".scope", nil, own},
		{"none", "ds01-" + id[:12], nil, ""},
		{"beside this process in its container", "docker-" + own + ".scope", []string{own}, ""},
		{"below this process's container", "docker-" + own + ".scope/" + id, []string{own}, id},
		{"another container than this process's", id, []string{own}, id},
	} {
		t.Run(r.name, func(t *testing.T) {
			p := connect(t, "connect", filepath.Join(root, r.dir))
			reader := &Reader{Own: make(map[string]bool)}
			for _, o := range append(ownIDs(t), r.own...) {
				reader.Own[o] = true
			}
			got, err := reader.Read(p.conn, Now())
			if err != nil {
				t.Fatal(err)
			}
			if got.ContainerID != r.want {
				t.Errorf("container %q, want %q", got.ContainerID, r.want)
			}
		})
	}
}

// ownIDs are the container IDs that every process started here wears, where the
// tests themselves run in a container.
func ownIDs(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return containerIDs(string(text))
}

func TestNewReaderKnowsItsOwnContainer(t *testing.T) {
	id := containerID(t, "own")
	root := cgroups(t, id)
	cmd := clientCommand(t, "print-own", filepath.Join(root, id), "")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); !slices.Contains(got, id) {
		t.Errorf("own containers %q, want %q among them", got, id)
	}
	r, err := NewReader()
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]bool)
	for _, id := range ownIDs(t) {
		want[id] = true
	}
	if !reflect.DeepEqual(r.Own, want) {
		t.Errorf("here: own containers %v, want %v", r.Own, want)
	}
}

// Before Linux 6.5 there is only a pid to go by: a process that began after the
// connection was accepted cannot be the one that connected.
func TestReadRefusesAProcessThatIsYoungerThanTheConnection(t *testing.T) {
	p := connect(t, "connect", "")
	if got, err := new(Reader).Read(p.conn, time.Second); !errors.Is(err, ErrGone) || got != (Peer{}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := new(Reader).Read(p.conn, Now()); err != nil {
		t.Error(err)
	}
}

func TestPrefixes(t *testing.T) {
	id := strings.Repeat("ab", 32)
	for _, c := range []struct{ text, want string }{
		{"0::/system.slice/docker-" + id + ".scope\n", "0::/system.slice/docker-" + id + ".scope"},
		{"0::/system.slice/docker-" + id + ".scope/init\n", "0::/system.slice/docker-" + id + ".scope"},
		{"4:memory:/docker/" + id + "\n3:cpu:/\n1:name=systemd:/docker/" + id, "4:memory:/docker/" + id + " 1:name=systemd:/docker/" + id},
		{"0::/user.slice/user@1.service/" + id + "/" + id + "\n", "0::/user.slice/user@1.service/" + id},
		{"0::/\n", ""},
	} {
		if got := strings.Join(prefixes(c.text, id), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

// A claim to be in a container holds where the container's first process is in
// the same cgroup, in every hierarchy that the claim is made in.
func TestWithin(t *testing.T) {
	id := strings.Repeat("ab", 32)
	reader := new(Reader)
	for _, c := range []struct {
		name, claim, placed string
		want                bool
	}{
		{"the same", "0::/a/" + id + "\n", "0::/a/" + id + "\n", true},
		{"below it", "0::/a/" + id + "/b\n", "0::/a/" + id + "\n", true},
		{"a name of one's own making", "0::/user.slice/" + id + "\n", "0::/a/" + id + "\n", false},
		{"right in one hierarchy only", "2:cpu:/a/" + id + "\n1:x:/user/" + id + "\n", "2:cpu:/a/" + id + "\n1:x:/a/" + id + "\n", false},
		{"no claim", "0::/\n", "0::/a/" + id + "\n", false},
	} {
		if got := reader.within(Peer{ContainerID: id, cgroups: c.claim}, c.placed); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
	if _, err := reader.Within(Peer{ContainerID: id}, 1<<30); err == nil {
		t.Error("a first process that is not there was read")
	}
}
