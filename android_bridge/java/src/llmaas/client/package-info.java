/**
 * A client of the llmaas daemon, which serves one language model to every app on a device. Java 11, without dependencies;
 * usable from Kotlin and on Android.
 */
package llmaas.client;
