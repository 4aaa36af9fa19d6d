package cgroupstat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what the processes of a slice use, those of all cgroups below it included.
type Usage struct {
	// Memory is bytes charged, page cache included: memory.current, or
	// memory.usage_in_bytes on v1.
	Memory int64
	// Cache is the bytes of Memory that the kernel takes back first when memory is
	// short: inactive_file of memory.stat, or total_inactive_file on v1.
	Cache int64
	// PIDs is a number of processes and threads.
	PIDs int64
	// Exists is false where there is no such slice; all else is then 0.
	Exists bool
}

// Used returns Memory without Cache, in bytes, and never less than 0: the kernel counts
// the two at different moments.
func (u Usage) Used() int64 { return max(u.Memory-u.Cache, 0) }

// patience is, about, how long a slice is waited for of which only part is there.
const patience = 50 * time.Millisecond

// Reader reads what slices use. It may be used from any number of goroutines.
//
// Its three files are read here and not by containerd/cgroups, which reads some twenty
// per cgroup on v1, and on v2 takes a file that it cannot read for 0.
type Reader struct {
	memory, pids         string
	memoryFile, cacheKey string
	unified              bool
}

// NewReader returns a reader of a tree's slices. The error names the controller, memory
// or pids, that the tree lacks.
func NewReader(t Tree) (*Reader, error) {
	dirs, err := t.controllers(memory, pids)
	if err != nil {
		return nil, err
	}
	r := &Reader{memory: dirs[memory], pids: dirs[pids], unified: t.Unified, memoryFile: "memory.usage_in_bytes", cacheKey: "total_inactive_file"}
	if t.Unified {
		r.memoryFile, r.cacheKey = "memory.current", "inactive_file"
	}
	return r, nil
}

// Read returns what a slice uses. A slice that does not exist is no error. Errors name
// the file that could not be read or understood, and what to do where that is known.
// A read takes some 50 µs; where part of the slice is missing, up to 50 ms, in case it
// is just being made or removed.
func (r *Reader) Read(cgroupPath string) (Usage, error) {
	if err := checkPath(cgroupPath); err != nil {
		return Usage{}, err
	}
	u, err := r.read(cgroupPath)
	// Either the slice comes or goes at this moment, or it stays incomplete.
	for pause := 100 * time.Microsecond; isMissing(err) && pause < patience; pause *= 2 {
		time.Sleep(pause)
		u, err = r.read(cgroupPath)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of %s: %w", cgroupPath, err)
	}
	return u, nil
}

// read returns an fs.ErrNotExist where only part of the slice is there.
func (r *Reader) read(cgroupPath string) (Usage, error) {
	var u Usage
	// memory.stat has some 2 KiB, whatever runs in the slice.
	buf := make([]byte, 16<<10)
	err := number(filepath.Join(r.memory, cgroupPath, r.memoryFile), buf, &u.Memory)
	if err == nil {
		err = r.cache(filepath.Join(r.memory, cgroupPath, "memory.stat"), buf, &u.Cache)
	}
	if err == nil {
		err = number(filepath.Join(r.pids, cgroupPath, "pids.current"), buf, &u.PIDs)
	}
	switch {
	case isMissing(err):
		return Usage{}, r.absent(cgroupPath, err)
	case err != nil:
		return Usage{}, err
	}
	u.Exists = true
	return u, nil
}

// absent explains why a file of a slice is missing; nil says that all of it is.
func (r *Reader) absent(cgroupPath string, err error) error {
	for _, root := range []string{r.memory, r.pids} {
		if !isDir(root) {
			return fmt.Errorf("%s is gone: mount cgroups there again", root)
		}
	}
	inMemory, inPIDs := isDir(filepath.Join(r.memory, cgroupPath)), isDir(filepath.Join(r.pids, cgroupPath))
	switch {
	case !inMemory && !inPIDs:
		return nil
	case r.unified:
		return fmt.Errorf("%w: enable the controller in cgroup.subtree_control of the slices above, or MemoryAccounting= and TasksAccounting= in the slice's unit", err)
	default:
		return fmt.Errorf("%w: the slice must exist in the memory and the pids hierarchy; restart its containers, or set MemoryAccounting= and TasksAccounting= in its unit", err)
	}
}

// cache reads the one line of memory.stat that counts.
func (r *Reader) cache(file string, buf []byte, out *int64) error {
	text, err := readInto(file, buf)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(line, []byte(" "))
		if ok && string(key) == r.cacheKey {
			return parse(file, value, out)
		}
	}
	return fmt.Errorf("%s has no %s: is the memory controller enabled?", file, r.cacheKey)
}

// number reads a file of one number.
func number(file string, buf []byte, out *int64) error {
	text, err := readInto(file, buf)
	if err != nil {
		return err
	}
	return parse(file, text, out)
}

func parse(file string, text []byte, out *int64) error {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%s: %.40q is not a number of 0 or more", file, text)
	}
	*out = n
	return nil
}

// readInto reads a whole file into buf.
func readInto(file string, buf []byte) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, pathError("open", file, err)
	}
	defer unix.Close(fd)
	for n := 0; n < len(buf); {
		m, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf[n:]) })
		if err != nil {
			return nil, pathError("read", file, err)
		}
		if m == 0 {
			return buf[:n], nil
		}
		n += m
	}
	return nil, fmt.Errorf("%s has %d bytes or more, which no such file has", file, len(buf))
}

// pathError names the file. Of a cgroup that is removed meanwhile, the kernel says ENODEV;
// here, its files are missing.
func pathError(op, file string, err error) error {
	if errors.Is(err, unix.ENODEV) {
		err = unix.ENOENT
	}
	err = &fs.PathError{Op: op, Path: file, Err: err}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: only root may; run the daemon as root", err)
	}
	return err
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
