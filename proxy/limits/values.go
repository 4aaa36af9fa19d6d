package limits

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

const (
	// minMemory is the Engine's least memory for a container, in bytes.
	minMemory = 6 << 20
	// minShm is a page, below which shared memory holds nothing.
	minShm = 4 << 10
	// maxPIDs is the kernel's PID_MAX_LIMIT on 64 bits; cgroups refuse more.
	maxPIDs = 4 << 20
	// minCPUs is the Engine's least share of processors, and maxCPUs more than any machine
	// has; up to it, billionths are exact.
	minCPUs, maxCPUs = 0.01, 1e6
	maxCPUQuota      = 100 * maxCPUs
	// maxGPUs is more than any machine has.
	maxGPUs = 1e6
)

var (
	sizeForm    = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.[0-9]+)? ?([kmgt]?)b?$`)
	numberForm  = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
	decimalForm = regexp.MustCompile(`^(0|[1-9][0-9]*)?(\.[0-9]+)?$`)
)

const unlimited = "null is unlimited"

// parseSize returns a reader of sizes of at least least bytes.
func parseSize(least int64) func(string) (int64, error) {
	return func(text string) (int64, error) {
		m := sizeForm.FindStringSubmatch(strings.ToLower(text))
		if m == nil || m[2] != "" && m[3] == "" {
			return 0, fmt.Errorf("%.40q is not a size such as 512m or 32g; %s", text, unlimited)
		}
		unit := int64(1)
		if m[3] != "" {
			unit = 1 << (10 * (1 + strings.Index("kmgt", m[3])))
		}
		whole, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || whole > math.MaxInt64/unit-1 {
			return 0, fmt.Errorf("%.40q is too much to count in bytes; %s", text, unlimited)
		}
		bytes := whole * unit
		if m[2] != "" {
			part, err := strconv.ParseFloat("0"+m[2], 64)
			if err != nil {
				return 0, fmt.Errorf("%.40q is not a size: %w", text, err)
			}
			bytes += int64(part * float64(unit))
		}
		if bytes < least {
			return 0, fmt.Errorf("%.40q is below %s, the least that works; is a unit missing? %s", text, showSize(least), unlimited)
		}
		return bytes, nil
	}
}

// parseWhole returns a reader of whole numbers from least to most.
func parseWhole[T int | int64](least, most T) func(string) (T, error) {
	return func(text string) (T, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || !numberForm.MatchString(text) || n < int64(least) || n > int64(most) {
			return 0, fmt.Errorf("%.40q is not a whole number from %d to %d; %s", text, least, most, unlimited)
		}
		return T(n), nil
	}
}

// parseDecimal reads a number from least to most that need not be whole.
func parseDecimal(text string, least, most float64) (float64, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !decimalForm.MatchString(text) || f < least || f > most {
		return 0, fmt.Errorf("%.40q is not a number from %s to %s; %s", text, showDecimal(least), showDecimal(most), unlimited)
	}
	return f, nil
}

func parseGPUs(text string) (float64, error) { return parseDecimal(text, 0, maxGPUs) }

// parseCPUs reads a number of processors into billionths.
func parseCPUs(text string) (int64, error) {
	f, err := parseDecimal(text, minCPUs, maxCPUs)
	return int64(math.Round(f * 1e9)), err
}

// parseQuota reads a percentage of one processor.
func parseQuota(text string) (int64, error) {
	number, ok := strings.CutSuffix(text, "%")
	n, err := parseWhole[int64](1, maxCPUQuota)(number)
	if !ok || err != nil {
		return 0, fmt.Errorf(`%.40q is not a percentage such as "200%%", which is two processors; %s`, text, unlimited)
	}
	return n, nil
}

// showSize writes bytes with the largest unit that leaves a whole number.
func showSize(n int64) string {
	unit := -1
	for unit < 3 && n != 0 && n%1024 == 0 {
		n, unit = n/1024, unit+1
	}
	text := strconv.FormatInt(n, 10)
	if unit >= 0 {
		text += "kmgt"[unit : unit+1]
	}
	return text
}

func showDecimal(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
func showCPUs(n int64) string      { return showDecimal(float64(n) / 1e9) }
func showQuota(n int64) string     { return strconv.FormatInt(n, 10) + "%" }

func showWhole[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }
