// Package lab sets up what tests, the demo and a first run need: a private
// Docker Engine, an image, a proxy before it, and clients that run as somebody.
// Everything lives in one directory and ends with it.
package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Image is the image that Engine.Import makes: busybox alone.
const Image = "busybox:local"

// An Engine is a private Docker Engine.
type Engine struct {
	// Dir holds all of its files, Socket among them.
	Dir    string
	Socket string

	flags []string
	// wrap is the command that runs dockerd, where it does not run by itself.
	wrap   []string
	bridge string
	cmd    *exec.Cmd
	ended  chan struct{}
	log    *os.File
}

// readyWithin is how long an Engine may take to answer; 3 to 6 s are usual.
const readyWithin = 60 * time.Second

// StartEngine starts an Engine whose files are below dir and whose containers
// are on a bridge of their own. The machine's own Engine and its rules are not
// touched. The flags are dockerd's, beside those that keep it apart.
func StartEngine(ctx context.Context, dir string, flags ...string) (*Engine, error) {
	for _, tool := range []string{"dockerd", "ip", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not installed: %w", tool, err)
		}
	}
	return startEngine(ctx, &Engine{Dir: dir, Socket: filepath.Join(dir, "docker.sock"), flags: flags})
}

func startEngine(ctx context.Context, e *Engine) (*Engine, error) {
	if err := e.addBridge(ctx); err != nil {
		return nil, err
	}
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

// addBridge makes a bridge with an address range that no interface has yet.
func (e *Engine) addBridge(ctx context.Context) error {
	var failures []error
	for n := 1; n < 250; n++ {
		name := fmt.Sprintf("ds01t%d-%d", os.Getpid()%100000, n)
		addr := fmt.Sprintf("172.31.%d.1/24", n)
		if taken(addr) {
			continue
		}
		if out, err := exec.CommandContext(ctx, "ip", "link", "add", name, "type", "bridge").CombinedOutput(); err != nil {
			failures = append(failures, fmt.Errorf("add bridge %s: %w: %s", name, err, out))
			if len(failures) == 3 {
				return errors.Join(failures...)
			}
			continue
		}
		e.bridge = name
		for _, args := range [][]string{{"addr", "add", addr, "dev", name}, {"link", "set", name, "up"}} {
			if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
				return errors.Join(fmt.Errorf("set up bridge %s: %w: %s", name, err, out), e.removeBridge())
			}
		}
		return nil
	}
	return errors.Join(append(failures, errors.New("no address range is free for a bridge"))...)
}

// taken reports whether an interface is in the range already.
func taken(cidr string) bool {
	_, want, err := net.ParseCIDR(cidr)
	if err != nil {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range addrs {
		if have, ok := a.(*net.IPNet); ok && (want.Contains(have.IP) || have.Contains(want.IP)) {
			return true
		}
	}
	return false
}

func (e *Engine) removeBridge() error {
	if e.bridge == "" {
		return nil
	}
	out, err := exec.Command("ip", "link", "del", e.bridge).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w: %s", e.bridge, err, out)
	}
	e.bridge = ""
	return nil
}

// Start starts the Engine's process and waits until it answers. It may be
// called again after Kill.
func (e *Engine) Start(ctx context.Context) error {
	var err error
	if e.log, err = os.OpenFile(e.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	args := []string{
		"--data-root", filepath.Join(e.Dir, "data"), "--exec-root", filepath.Join(e.Dir, "exec"),
		"-H", "unix://" + e.Socket, "-p", filepath.Join(e.Dir, "engine.pid"),
		"--config-file", filepath.Join(e.Dir, "no-daemon.json"),
		"--bridge", e.bridge, "--iptables=false", "--ip-forward=false",
	}
	line := append(append(slices.Clone(e.wrap), "dockerd"), append(args, e.flags...)...)
	e.cmd = exec.Command(line[0], line[1:]...)
	if err := os.WriteFile(filepath.Join(e.Dir, "no-daemon.json"), []byte("{}"), 0o600); err != nil {
		return fmt.Errorf("engine configuration: %w", err)
	}
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	// A test that is interrupted at the terminal must still stop its Engine.
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := e.cmd.Start(); err != nil {
		return fmt.Errorf("start engine: %w", err)
	}
	e.ended = make(chan struct{})
	go func() {
		_ = e.cmd.Wait()
		close(e.ended)
	}()
	deadline := time.Now().Add(readyWithin)
	for {
		if Answers(ctx, e.Socket) {
			return nil
		}
		select {
		case <-e.ended:
			return fmt.Errorf("the Engine ended at once: %s", e.LogTail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the Engine does not answer after %v: %s", readyWithin, e.LogTail())
		}
	}
}

// LogPath is the file with what the Engine prints.
func (e *Engine) LogPath() string { return filepath.Join(e.Dir, "engine.log") }

// LogTail returns the end of the Engine's log.
func (e *Engine) LogTail() string {
	text, err := os.ReadFile(e.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// Answers reports whether an Engine answers on the socket.
func Answers(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
	if err != nil {
		return false
	}
	c := HTTPClient(socket)
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// HTTPClient returns a client that speaks HTTP over a Unix socket.
func HTTPClient(socket string) *http.Client {
	var d net.Dialer
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}}
}

// Halt ends the Engine's process, and with it its containers, by its ID.
func (e *Engine) Halt() error {
	if e.cmd == nil || e.cmd.Process == nil || e.ended == nil {
		return nil
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.ended:
	case <-time.After(30 * time.Second):
		_ = e.cmd.Process.Kill()
		<-e.ended
	}
	e.ended = nil
	return e.log.Close()
}

// Stop removes all containers, ends the Engine and takes away its bridge and
// its mounts. Its directory is the caller's to remove.
func (e *Engine) Stop() error {
	if e.ended != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		e.removeContainers(ctx)
	}
	err := e.Halt()
	Unmount(e.Dir)
	return errors.Join(err, e.removeBridge())
}

// removeContainers is best effort: what is left dies with the Engine.
func (e *Engine) removeContainers(ctx context.Context) {
	out, err := e.Docker(ctx, "ps", "-aq")
	if ids := strings.Fields(out); err == nil && len(ids) > 0 {
		_, _ = e.Docker(ctx, append([]string{"rm", "-f"}, ids...)...)
	}
}

// Unmount takes away whatever is mounted below a directory that is about to be
// removed: what is in the mounts is somebody's and must stay.
func Unmount(dir string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		_ = syscall.Unmount(points[i], syscall.MNT_DETACH)
	}
}

// Docker runs the docker CLI on the Engine's own socket, as the admin would,
// and returns what it printed.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket, "DOCKER_CONFIG="+filepath.Join(e.Dir, "admin-config"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Import makes Image from the machine's busybox.
func (e *Engine) Import(ctx context.Context) error {
	root, err := busyboxTar(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://engine/images/create?fromSrc=-&repo=busybox&tag=local&changes="+
			"CMD+%5B%22sh%22%5D&changes=ENV+PATH%3D%2Fbin", root)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-tar")
	c := HTTPClient(e.Socket)
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(text, []byte(`"error"`)) {
		return fmt.Errorf("import image: %s: %s: %w", resp.Status, text, err)
	}
	return nil
}

// busyboxTar is a root file system of busybox and links to it.
func busyboxTar(ctx context.Context) (*bytes.Buffer, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox is not installed: %w", err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	list, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	entries := []tar.Header{{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}}
	for _, dir := range []string{"etc/", "root/", "home/"} {
		entries = append(entries, tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755})
	}
	entries = append(entries,
		tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(binary))})
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			entries = append(entries, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
		}
	}
	for i := range entries {
		if err := w.WriteHeader(&entries[i]); err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		if entries[i].Size > 0 {
			if _, err := w.Write(binary); err != nil {
				return nil, fmt.Errorf("image: %w", err)
			}
		}
	}
	return &out, w.Close()
}
