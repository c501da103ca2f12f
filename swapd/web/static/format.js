// Figures as people read them.

const GIB = 1024 ** 3, MIB = 1024 ** 2;

export function size(bytes) {
  return bytes >= GIB ? `${(bytes / GIB).toFixed(1)} GiB` : `${Math.round(bytes / MIB)} MiB`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

export function clock(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString();
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString();
}

export function sum(sizes) {
  return Object.values(sizes).reduce((total, one) => total + one, 0);
}
